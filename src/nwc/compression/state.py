"""What a run has finished so far, on disk beside its output: a killed run goes on where it was.

    state.json                     fingerprint of everything that decides the result
    rate.json                      what the rate controller found by sampling
    calibration.safetensors        token windows
    prepared/                      the model after its method changed it as a whole
    survey/                        features and gradients while the survey goes on
    survey.safetensors             what it found
    features/00003.bin             inputs of block 3, as long as a unit needs them
    units/00003/group-01.safetensors    streams of a group of layers, and facts about them
    units/00003/tuned-01.safetensors    parameters that fine-tuning after it changed
    units/00003/finished.safetensors    the unit is done; kept tensors that were tuned
    hessians/00003-1.bin           of groups that wait while the block is tuned

Every file appears whole, by renaming, and none is changed afterwards.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nwc.coding.tables import TableBank
from nwc.errors import ConfigError, FormatError, NWCError

_BANK = "nwc.tables"


@dataclass(frozen=True, kw_only=True)
class FinishedTensor:
    """A compressed matrix and what is known of it.

    Args:
        name: see `PlannedTensor.name`.
        data: its stream; tables with a shared place are those of the group's bank.
        log2_gain: mean gain that it was compressed with.
        relative: |W - W_hat|_F / |W|_F, NaN where W = 0.
        hessian: tr(E H E^T) / tr(W H W^T); None without calibration.
        damping: share of mean(diag H) that was added; None without calibration.
        tokens: that its layer saw in calibration; None without.
        by_importance: relative error of the columns in each tenth of diag H, quietest first.
    """

    name: str
    data: bytes
    log2_gain: float
    relative: float
    hessian: float | None = None
    damping: float | None = None
    tokens: int | None = None
    by_importance: list[float] | None = None

    def facts(self) -> dict[str, Any]:
        """Everything but the stream."""
        return {k: v for k, v in asdict(self).items() if k not in ("name", "data")}


@dataclass(frozen=True, kw_only=True)
class FinishedGroup:
    """What was compressed between two fine-tunings.

    Args:
        tensors: the matrices.
        bank: tables that they share.
        warnings: for the user.
    """

    tensors: list[FinishedTensor]
    bank: TableBank
    warnings: list[str] = field(default_factory=list)


class WorkFolder:
    """Reads and writes the folder; see the module.

    Args:
        path: the folder, made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any = None

    def open(self, fingerprint: dict[str, Any], *, restart: bool) -> bool:
        """Begin or go on; returns whether there is something to go on with.

        Args:
            fingerprint: what decides the result, JSON-ready.
            restart: forget what is there.

        Raises:
            ConfigError: what is there belongs to another run, or another process works on it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("w")
        except OSError as error:
            raise FormatError(f"cannot write to {self.path}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._begin(fingerprint, restart=restart)
        except BlockingIOError as error:
            self._lock.close()
            raise ConfigError(
                f"another run works on {self.path}; wait for it, or choose another --output"
            ) from error
        except NWCError:
            self._lock.close()
            raise

    def _begin(self, fingerprint: dict[str, Any], *, restart: bool) -> bool:
        state = self.path / "state.json"
        if restart:
            self._clear()
        if not state.exists():
            self._clear()
            _write(state, json.dumps(fingerprint, indent=1, sort_keys=True).encode())
            return False
        before = _read_json(state)
        differences = [
            f"{key} was {before.get(key)!r}, now {fingerprint.get(key)!r}"
            for key in sorted(before.keys() | fingerprint.keys())
            if before.get(key) != fingerprint.get(key)
        ]
        if differences:
            raise ConfigError(
                f"{self.path} holds the state of another run: {'; '.join(differences)}. "
                "Use the same options to go on with it, or --restart to begin anew"
            )
        return True

    def _clear(self) -> None:
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    @property
    def is_empty(self) -> bool:
        """Whether nothing that took long is there yet."""
        long = ("prepared", "features/*", "survey/*", "survey.safetensors", "units/*")
        return not any(any(self.path.glob(pattern)) for pattern in long)

    def close(self, *, remove: bool) -> None:
        """Release the folder; a finished run removes it."""
        if remove:
            shutil.rmtree(self.path)
        self._lock.close()

    def features_path(self, block: int, kind: str = "features") -> Path:
        """Where the inputs of a block lie."""
        return self.path / kind / f"{block:05d}.bin"

    def drop_features(self, block: int) -> None:
        """Delete the inputs of a block, if those of the next one are there."""
        for kind in ("features", "drifted"):
            if self.features_path(block + 1, kind).exists():
                self.features_path(block, kind).unlink(missing_ok=True)

    def write_json(self, name: str, value: object) -> None:
        """Store a JSON value."""
        _write(self.path / name, json.dumps(value).encode())

    def read_json(self, name: str) -> Any | None:  # noqa: ANN401  (JSON)
        """A stored JSON value; None if there is none."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    def write_tensors(self, name: str, tensors: dict[str, Tensor], facts: object) -> None:
        """Store tensors and a JSON value."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, save({k: v.contiguous() for k, v in tensors.items()}, _metadata(facts)))

    def read_tensors(self, name: str) -> tuple[dict[str, Tensor], Any] | None:
        """What `write_tensors` stored; None if there is none.

        Raises:
            FormatError: the file is damaged.
        """
        return self._read(name, lambda file: {k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118

    def read_facts(self, name: str) -> Any | None:  # noqa: ANN401  (JSON)
        """The JSON value beside stored tensors, which stay unread; None if there is none."""
        found = self._read(name, lambda file: {})
        return None if found is None else found[1]

    def read_bank(self, name: str) -> TableBank:
        """The tables of a finished group, without its streams."""
        found = self._read(name, lambda file: {_BANK: file.get_tensor(_BANK)})
        assert found is not None
        return TableBank.from_bytes(found[0][_BANK].numpy().tobytes())

    def _read(
        self, name: str, pick: Callable[[Any], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                return pick(file), json.loads(file.metadata()["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path} is damaged ({error}); begin anew with --restart") from error

    def write_group(self, unit: int, stage: int, group: FinishedGroup) -> None:
        """Store what was compressed."""
        tensors = {t.name: _bytes(t.data) for t in group.tensors}
        tensors[_BANK] = _bytes(group.bank.to_bytes())
        facts = {
            "tensors": {t.name: {**t.facts(), "bytes": len(t.data)} for t in group.tensors},
            "warnings": group.warnings,
        }
        self.write_tensors(_group(unit, stage), tensors, facts)

    def read_group(self, unit: int, stage: int) -> FinishedGroup | None:
        """What was compressed; None if it was not yet."""
        found = self.read_tensors(_group(unit, stage))
        if found is None:
            return None
        tensors, facts = found
        finished = []
        for name, about in facts["tensors"].items():
            del about["bytes"]
            data = tensors[name].numpy().tobytes()
            finished.append(FinishedTensor(name=name, data=data, **about))
        bank = TableBank.from_bytes(tensors[_BANK].numpy().tobytes())
        return FinishedGroup(tensors=finished, bank=bank, warnings=facts["warnings"])

    def group_files(self, unit: int) -> list[str]:
        """Names of what a unit has compressed so far, in order."""
        folder = self.path / "units" / f"{unit:05d}"
        return sorted(str(p.relative_to(self.path)) for p in folder.glob("group-*.safetensors"))

    def unit_file(self, unit: int, name: str) -> str:
        """Name of another file of a unit."""
        return f"units/{unit:05d}/{name}.safetensors"

    def is_finished(self, unit: int) -> bool:
        """Whether everything in a unit is done."""
        return (self.path / self.unit_file(unit, "finished")).exists()

    def remove(self, name: str) -> None:
        """Delete a file that nothing needs any more."""
        (self.path / name).unlink(missing_ok=True)


def _group(unit: int, stage: int) -> str:
    return f"units/{unit:05d}/group-{stage:02d}.safetensors"


def _metadata(facts: object) -> dict[str, str]:
    return {"facts": json.dumps(facts)}


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _write(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent, whatever happens meanwhile."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error}); begin anew with --restart") from error
    assert isinstance(value, dict)
    return value
