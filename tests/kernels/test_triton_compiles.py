"""The kernels compile for GPUs, none at hand, and the compiler lays lanes out as they assume.

In a process of its own: this one may have Triton's interpreter in place of its compiler.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import re
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from nwc.kernels.rans_triton import decode_tiles
from nwc.kernels.synthesis_triton import add_patches

types = {
    "words": "*i16", "states": "*i32", "slots": "*i64", "column_classes": "*u8",
    "row_classes": "*u8", "choice": "*i64", "packed": "*i32", "values": "*fp32",
    "column_scales": "*fp32", "row_scales": "*fp32", "vectors": "*fp32", "vector_stride": "i64",
    "out": "", "out_stride": "i64", "ends": "*i32",
}
outputs = {"integers": "*i16", "weights": "*bf16", "products": "*fp32"}
for capability, warps, full in ((80, 1, 0), (80, 4, 1), (90, 1, 1), (90, 4, 0), (90, 4, 1)):
    for sink, out in outputs.items():
        constants = dict(
            TILES=2 * warps, TRELLIS=bool(full), ROW_CLASSES=bool(full), ROW_SCALES=bool(full),
            SINK=sink, BATCH=2 if sink == "products" else 1, BALLOT=True,
            AHEAD=64 if warps == 1 else 0,
        )
        signature = types | {"out": out} | dict.fromkeys(constants, "constexpr")
        source = ASTSource(decode_tiles, signature, constants)
        kernel = compile(source, GPUTarget("cuda", capability, 32), {"num_warps": warps})
        text = kernel.asm["ttgir"]
        # A vote of the warp counts the lanes of two tiles: one lane a thread, in this order, and
        # nothing that moves lanes to other threads.
        layouts = set(re.findall(r"#ttg.blocked<.*?>", text))
        wanted = "PerThread = [1], threadsPerWarp = [32], warpsPerCTA = [%d], order = [0]" % warps
        assert len(layouts) == 1 and wanted in layouts.pop(), text
        assert "vote.sync" in text and "convert_layout" not in text, text
        assert ".target sm_%d" % capability in kernel.asm["ptx"]
        assert ("prefetch.global.L1" in kernel.asm["ptx"]) == (warps == 1)
signature = types | {"out": "*i16"} | dict.fromkeys(constants, "constexpr")
scan = constants | {"SINK": "integers", "BALLOT": False}
compile(ASTSource(decode_tiles, signature, scan), GPUTarget("cuda", 90, 32), {"num_warps": 4})
patches = dict(
    rows="*i64", starts="*i64", columns="*i64", deltas="*fp32", vectors="*fp32",
    vector_stride="i64", out="*fp32", out_stride="i64", BLOCK="constexpr",
)
compile(ASTSource(add_patches, patches, {"BLOCK": 32}), GPUTarget("cuda", 90, 32), {})
print("compiled")
"""


def test_kernels_compile_for_nvidia_gpus(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed: pip install .[gpu]")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert run.stdout == "compiled\n", run.stderr[-3000:]
