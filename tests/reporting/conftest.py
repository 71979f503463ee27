"""Reports such as compressions write, and a headless Chromium to look at their pages."""

import base64
import fcntl
import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHAPES = {
    "self_attn.q_proj": (1, 1),
    "self_attn.k_proj": (0.5, 1),
    "self_attn.v_proj": (0.5, 1),
    "self_attn.o_proj": (1, 1),
    "mlp.gate_proj": (2.7, 1),
    "mlp.up_proj": (2.7, 1),
    "mlp.down_proj": (1, 2.7),
}
PARTS = {
    "tables": 0.0112,
    "index": 0.0304,
    "scales": 0.0987,
    "levels": 0.0213,
    "patches": 0.0,
    "codec": 0.0011,
    "headers": 0.0331,
}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")


def report(
    blocks: int = 6,
    *,
    experts: int = 0,
    width: int = 320,
    calibrated: bool = True,
    recovery: bool = True,
    bits: float = 4.5,
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """A report whose numbers hang together as those of a real one do."""
    dice = random.Random(seed)
    tensors = [
        _tensor(dice, block, name, _shape(kind, width), blocks, calibrated, bits)
        for block in range(blocks)
        for kind in SHAPES
        for name in _names(kind, experts)
    ]
    kept = [_kept("model.embed_tokens.weight", [4096, width], "embedding or head")]
    for block in range(blocks):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            kept.append(_kept(f"model.layers.{block}.{norm}.weight", [width], "not a matrix"))
    weights = sum(math.prod(t["shape"]) for t in tensors)
    _aim(tensors, weights, bits - PARTS["codec"] - PARTS["tables"])
    over = sum(t["bits_per_parameter"] * math.prod(t["shape"]) for t in tensors) / max(weights, 1)
    payload = over - sum(PARTS.values()) + PARTS["codec"] + PARTS["tables"]
    split = {"payload": payload, **PARTS}
    kept_bytes = sum(row["bytes"] for row in kept)
    kept_weights = kept_bytes // 2
    file_bytes = int(sum(split.values()) * weights / 8) + kept_bytes + 310_000
    return {
        "version": "1.0",
        "nwc": "0.1.0",
        "command": "nwc compress M --output OUT --bits 4.5 --calibration text.txt",
        "versions": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "numpy": "2.4.6",
        },
        "model": {"name": "books-llama", "architecture": "LlamaForCausalLM", "license": "mit"},
        "method": "nwc",
        "preset": "default",
        "target_bits": bits,
        "target": "tensors",
        "calibrated": calibrated,
        "calibration": {"source": "text.txt", "tokens": 131072, "context": 256}
        if calibrated
        else None,
        "recovery": recovery,
        "features": "compressed" if calibrated else None,
        "hash": "9f86d081884c7d659a2feaa0c55ad015",
        "original_bytes": 2 * weights + kept_bytes + 310_000,
        "file_bytes": file_bytes,
        "compressed_parameters": weights,
        "kept_parameters": kept_weights,
        "bits_per_parameter": {
            "tensors": sum(split.values()),
            "file": 8 * file_bytes / (weights + kept_weights),
            **split,
        },
        "tensors": tensors,
        "blocks": [_block(dice, b, blocks) for b in range(blocks)] if recovery else [],
        "distillation": None,
        "kept": kept,
        "warnings": [],
    } | changes


def _aim(tensors, weights, bits) -> None:
    """Shift the rates to their mean."""
    total = sum(t["bits_per_parameter"] * math.prod(t["shape"]) for t in tensors)
    for tensor in tensors:
        tensor["bits_per_parameter"] += bits - total / weights
        tensor["bytes"] = int(tensor["bits_per_parameter"] * math.prod(tensor["shape"]) / 8)


def _names(kind: str, experts: int) -> list[str]:
    if not experts or not kind.startswith("mlp."):
        return [kind]
    return [kind.replace("mlp.", f"mlp.experts.{i}.") for i in range(experts)]


def _shape(kind: str, width: int) -> list[int]:
    return [int(width * part) for part in SHAPES[kind]]


def _tensor(dice, block, kind, shape, blocks, calibrated, bits) -> dict[str, Any]:
    place = list(SHAPES).index("mlp." + kind.split(".")[-1] if "mlp" in kind else kind)
    rate = bits + 0.35 * math.sin(place) + 0.3 * (0.5 - block / blocks) + dice.gauss(0, 0.05)
    error = 2.0**-rate * (0.86 + 0.03 * place) * math.exp(dice.gauss(0, 0.03))
    deciles = [error * 1.5 * math.exp(-0.07 * i * (1 + place / 5)) for i in range(10)]
    return {
        "name": f"model.layers.{block}.{kind}.weight",
        "block": block,
        "kind": kind,
        "shape": shape,
        "bits_per_parameter": rate,
        "bytes": int(rate * math.prod(shape) / 8),
        "relative_error": error,
        "hessian_error": 0.4 * error**2 if calibrated else None,
        "tokens": 131072 if calibrated else None,
        "damping": 0.001 if calibrated else None,
        "log2_gain": rate - 2.05,
        "error_by_importance": deciles if calibrated else None,
    }


def _block(dice, block: int, blocks: int) -> dict[str, Any]:
    names = ("q_proj, k_proj, v_proj", "o_proj", "gate_proj, up_proj", "down_proj")
    groups, error = [], 0.0
    for name in names:
        added = 0.0004 * (1 + 2 * block / blocks) * math.exp(dice.gauss(0, 0.3))
        kept = dice.random() > 0.15
        before = error + added
        error = before * (dice.uniform(0.7, 0.9) if kept else 1)
        groups.append(
            {
                "name": name,
                "before": before,
                "after": error,
                "steps": 120 if kept else 0,
                "kept": kept,
                "note": "" if kept else "did not help",
            }
        )
    return {"block": block, "groups": groups, "before": groups[0]["before"], "after": error}


def _kept(name: str, shape: list[int], why: str) -> dict[str, Any]:
    size = 2 * math.prod(shape)
    return {"name": name, "shape": shape, "dtype": "BF16", "bytes": size, "why": why}


@pytest.fixture(scope="session")
def make_report() -> Callable[..., dict[str, Any]]:
    """Call it for a report; see `report`."""
    return report


class Browser:
    """Drives Chromium over its debugging pipe: JSON messages, a zero byte after each."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = _pipe()
        self._read, to_write = _pipe()
        # The browser reads from descriptor 3 and writes to 4.
        moved = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4)"
        command = [sys.executable, "-c", moved + "; os.execv(sys.argv[3], sys.argv[3:])"]
        command += [str(to_read), str(to_write), program, "--headless", "--no-sandbox"]
        command += [
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
        ]
        command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], 60)[0]:
                raise RuntimeError("Chromium is silent")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError(f"Chromium ended with {self._process.wait()}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int, scheme: str = "light") -> None:
        """Show a page at some width, and forget the events before it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.named("Page.loadEventFired"):
            self.events.append(self._receive())

    def named(self, *methods: str) -> list[dict[str, Any]]:
        """Parameters of the events of that name since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=self._page())
        path.write_bytes(base64.b64decode(shot["data"]))

    def _page(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not among the descriptors that the browser wants."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium; NWC_CHROMIUM names one that is not on the path."""
    given = os.environ.get("NWC_CHROMIUM")
    found = given or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not found:
        pytest.skip("no Chromium here: install one, or name it in NWC_CHROMIUM")
    browser = Browser(found, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
