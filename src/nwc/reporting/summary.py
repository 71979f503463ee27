"""What is read off a report before anything is drawn: means, groups, rows."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nwc.reporting.schema import DECILES
from nwc.reporting.text import finite, known

Tensor = dict[str, Any]
"""An entry of `tensors` of a report."""

KINDS = 8
"""Kinds that a chart can tell apart."""

K = TypeVar("K", bound=Hashable)


def parameters(tensor: Tensor) -> int:
    """Weights in a tensor."""
    return math.prod(tensor["shape"])


def mean(tensors: Iterable[Tensor], key: str) -> float | None:
    """Mean over tensors, each weighing as many as it has parameters; None if none is known."""
    total = weight = 0.0
    for tensor in tensors:
        value = known(tensor[key])
        if value is not None:
            total += value * parameters(tensor)
            weight += parameters(tensor)
    return total / weight if weight else None


def ratio(report: dict[str, Any]) -> float | None:
    """Bytes of the original over bytes of the compressed folder."""
    before, after = known(report["original_bytes"]), known(report["file_bytes"])
    return before / after if before and after else None


def original_bits(report: dict[str, Any]) -> float | None:
    """Bits per parameter of the original folder."""
    sizes = (report["compressed_parameters"], report["kept_parameters"])
    total, bytes_ = sum(finite(sizes)), known(report["original_bytes"])
    return 8 * bytes_ / total if bytes_ and total else None


def worst(tensors: Sequence[Tensor], limit: int) -> list[Tensor]:
    """All tensors as they come or, of too many, those of largest relative error."""
    if len(tensors) <= limit:
        return list(tensors)
    return sorted(tensors, key=lambda t: -(known(t["relative_error"]) or 0.0))[:limit]


class Kinds:
    """The kinds of tensor that a chart shows, in the order of the model.

    Numbers in a kind are left out, so that all experts of a block are of one kind. Of more than
    eight kinds, the seven with the most parameters remain; the others count as one.

    Example:
        >>> Kinds([{"kind": "mlp.experts.7.up_proj", "shape": [2, 2]}]).names
        ['mlp.experts.*.up_proj']
    """

    OTHERS = "others"
    _NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        weight: Counter[str] = Counter()
        for tensor in tensors:
            weight[self._plain(tensor)] += max(parameters(tensor), 1)
        self.names = list(weight)
        if len(weight) > KINDS:
            large = {name for name, _ in weight.most_common(KINDS - 1)}
            self.names = [name for name in weight if name in large] + [self.OTHERS]

    @property
    def labels(self) -> list[str]:
        """The names without what stands before their last dot, if they still differ then."""
        short = [name.rpartition(".")[2] for name in self.names]
        return short if len(set(short)) == len(short) else self.names

    def of(self, tensor: Tensor) -> int:
        """Place of the tensor's kind in `names`."""
        name = self._plain(tensor)
        return self.names.index(name) if name in self.names else len(self.names) - 1

    def _plain(self, tensor: Tensor) -> str:
        return self._NUMBER.sub("*", tensor["kind"] or "no kind")


def grouped(items: Iterable[Tensor], key: Callable[[Tensor], K]) -> dict[K, list[Tensor]]:
    """Tensors by key, keys as they first appear."""
    groups: dict[K, list[Tensor]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def bins(places: Iterable[int], limit: int) -> dict[int, tuple[int, int]]:
    """The first and last place of the bin that every place falls in; at most `limit` bins.

    Example:
        >>> bins([0, 1, 2, 3], 2)
        {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}
    """
    known_places = sorted(set(places))
    width = max(1, math.ceil(len(known_places) / limit))
    found: dict[int, tuple[int, int]] = {}
    for i in range(0, len(known_places), width):
        members = known_places[i : i + width]
        found |= dict.fromkeys(members, (members[0], members[-1]))
    return found


@dataclass(frozen=True)
class HeatRow:
    """Relative error by decile of diag H, mean over tensors."""

    label: str
    kind: int | None
    tensors: int
    values: list[float | None]


def heat_rows(
    tensors: Iterable[Tensor], key: Callable[[Tensor], tuple[str, int | None]]
) -> list[HeatRow]:
    """Error by importance of groups of tensors; those without it do not count.

    Args:
        tensors: any.
        key: label of a tensor's group, and its kind if it has but one.
    """
    rows = []
    measured = (t for t in tensors if t["error_by_importance"] is not None)
    for (label, kind), members in grouped(measured, key).items():
        columns = []
        for i in range(DECILES):
            pairs = [(known(t["error_by_importance"][i]), parameters(t)) for t in members]
            weight = sum(w for v, w in pairs if v is not None)
            total = sum(v * w for v, w in pairs if v is not None)
            columns.append(total / weight if weight else None)
        rows.append(HeatRow(label, kind, len(members), columns))
    return rows


@dataclass(frozen=True)
class Share:
    """Bytes of the folder with one purpose."""

    name: str
    what: str
    style: str
    bytes: float
    bits: float | None
    """Per compressed parameter; None outside the compressed tensors."""


_WHAT = {
    "payload": "entropy-coded symbols",
    "scales": "a scale for every column or row",
    "levels": "importance level of every column",
    "tables": "symbol frequencies",
    "index": "where every tile begins",
    "patches": "symbols outside the tables",
    "codec": "the synthesis transform",
    "headers": "names, shapes, checksums",
}


def overheads(report: dict[str, Any]) -> list[Share]:
    """What the compressed tensors take besides their payload."""
    return [share for share in _parts(report) if share.name != "payload" and share.bytes > 0]


def shares(report: dict[str, Any]) -> list[Share]:
    """Where the bytes of the folder went: payload, overhead, kept tensors and the rest."""
    parts = _parts(report)
    payload = [share for share in parts if share.name == "payload"]
    extra = overheads(report)
    bits = sum(share.bits or 0.0 for share in extra)
    overhead = Share("overhead", "everything else of the compressed tensors", "overhead",
                     sum(share.bytes for share in extra), bits)  # fmt: skip
    kept_bytes = float(sum(finite(row["bytes"] for row in report["kept"])))
    kept = Share("kept tensors", "stored as they were", "kept", kept_bytes, None)
    found = [*payload, overhead, kept]
    rest = (known(report["file_bytes"]) or 0.0) - sum(share.bytes for share in found)
    found.append(Share("other files", "tokenizer, configuration", "rest", max(rest, 0.0), None))
    return [share for share in found if share.bytes > 0]


def _parts(report: dict[str, Any]) -> list[Share]:
    weights = known(report["compressed_parameters"]) or 0
    split = {k: known(v) for k, v in report["bits_per_parameter"].items()}
    names = [name for name in _WHAT if name in split]
    names += [name for name in split if name not in (*_WHAT, "tensors", "file")]
    styles = {name: f"o{i % 7}" for i, name in enumerate(n for n in names if n != "payload")}
    return [
        Share(name, _WHAT.get(name, ""), styles.get(name, "payload"), value * weights / 8, value)
        for name in names
        if (value := split[name]) is not None
    ]
