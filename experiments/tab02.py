r"""Table 2: time to encode and decode a 4096 x 4096 tensor at 4 bits.

    python experiments/tab02.py --scale small

The paper's times are of a GPU and, for decoding, of networks and entropy code measured apart; ours
are of one core of a processor, a whole tensor from bytes to BF16, and encoding with LDLQ feedback
under a random Hessian. Ratios are the robust part. `small` takes half an hour of one core for a
tensor of 1,024 x 1,024; `full` has the paper's size.
"""

from __future__ import annotations

import statistics
import time

import style
import torch
from published import printed
from runner import Experiment, Point, Row, main
from torch import Tensor
from world import World

from nwc.cli.trials import WAYS
from nwc.coding.tables import TableBank
from nwc.evaluation.benchmark import bench_tensor
from nwc.formats.shipped import shipped_codec
from nwc.methods.base import LayerMethod, LayerWeight
from nwc.methods.dense import DenseMethod
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural
from nwc.methods.registry import DENSE

METHODS = ("nwc", "nwc light", "nwc paper", "ecsq", "rtn", "gptq", "qtip", "quip_sharp")
SIZES = {"tiny": 64, "small": 1024, "full": 4096}
BITS = 4.0


def points(world: World) -> list[Point]:
    """Methods that the registry has."""
    size = SIZES[world.scale]
    names = [name for name in METHODS if name in WAYS]
    if world.scale == "tiny":
        names = ["nwc", "gptq"]
    return [{"method": name, "size": size} for name in names]


def method_of(name: str) -> LayerMethod:
    """A method at 4 bits."""
    if name == "ecsq":
        return Ecsq()
    if name in DENSE:
        return DENSE[name](BITS)
    preset = name.removeprefix("nwc").strip() or "default"
    return Neural(shipped_codec(preset, BITS)[0])


def hessian(n: int) -> Tensor:
    """That of inputs that depend on one another."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.eye(n) + 0.5 * torch.randn(n, n, generator=generator) / n**0.5
    x = torch.randn(2 * n, n, generator=generator) @ mixing
    return x.T @ x / len(x)


def measure(world: World, point: Point) -> list[Row]:
    """Seconds to encode with feedback, and to decode where there is something to decode."""
    size, method = point["size"], method_of(point["method"])
    W = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    H = hessian(size)
    seconds = []
    for _ in range(1 if world.scale == "full" else 3):
        start = time.perf_counter()
        method.compress([LayerWeight(name="weight", W=W)], H, BITS - 2.05, TableBank())
        seconds.append(time.perf_counter() - start)
    facts: Row = {"encode_ms": 1e3 * statistics.median(seconds)}
    if not isinstance(method, DenseMethod):
        found = bench_tensor(method, BITS - 2.05, size, 3)
        facts |= {
            "decode_ms": 1e3 * found["decode"]["seconds"],
            "decode_to_safetensors": found["decode"]["ratio_to_safetensors"],
            "bits": found["bits_per_parameter"],
        }
    return [facts]


def table(rows: list[Row]) -> str:
    """Ours in milliseconds; the paper's in brackets."""
    head = ("Method", "Size", "Bits", "Encode, ms", "Decode, ms", "Decode / safetensors")
    body = []
    for row in rows:
        cells = []
        for quantity in ("encode_ms", "decode_ms"):
            ours, theirs = row.get(quantity), printed("Table 2", row["method"], quantity)
            cell = "" if ours is None else f"{ours:.4g}"
            cells.append(cell + ("" if theirs is None else f" ({theirs:g})"))
        body.append(
            (row["method"], row["size"], row.get("bits"), *cells, row.get("decode_to_safetensors"))
        )
    note = "\nIn brackets: Table 2 of the paper, 4096 x 4096 on a GPU. "
    return style.markdown(head, body) + note + f"Ours: {rows[-1]['machine']}.\n"


EXPERIMENT = Experiment(name="tab02", points=points, measure=measure, table=table)

if __name__ == "__main__":
    main("tab02")
