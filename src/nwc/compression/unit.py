"""Compresses one unit: a block, or a matrix that calibration does not reach.

Everything a unit needs it reads from the checkpoint and the work folder, and everything it makes
it writes there group by group, so that any process can do it, or go on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from nwc.coding.tables import TableBank
from nwc.compression.features import FeatureFile
from nwc.compression.plan import Plan, PlannedTensor
from nwc.compression.rate_control import Done, RateController
from nwc.compression.recorder import Group, InputRecorder
from nwc.compression.recovery import ORDERS, FineTuner, Recovery, RecoveryConfig, stages
from nwc.compression.source import SourceCheckpoint
from nwc.compression.state import FinishedGroup, FinishedTensor, WorkFolder
from nwc.compression.stream import BlockStream, LoadedBlock
from nwc.methods.base import CompressedLayer, LayerMethod, LayerWeight

TOLERANCE = 0.001
"""Relative deviation from the target below which the last group is not compressed again."""

RETRIES = 6
"""How often the last group is compressed again at most."""


def visible(unit: int, count: int) -> range:
    """Finished units that the gain of a unit takes into account.

    Were it all that happen to be finished, the result would depend on how many work at once. The
    first unit is seen by all others, the last one sees all, those between wait for units a
    quarter of the model before them.

    Example:
        >>> [list(visible(u, 6)) for u in range(6)]
        [[], [0], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4]]
    """
    if unit == count - 1:
        return range(unit)
    return range(max(min(unit, 1), unit - max(1, count // 4)))


@dataclass(kw_only=True)
class UnitCompressor:
    """Compresses units of one run.

    Args:
        source: the checkpoint.
        plan: what to compress.
        method: how.
        controller: which gain to use; None for methods whose rate no gain steers.
        work: the run's state.
        stream: calibration; None compresses without (data-free).
        recovery: fine-tuning; None leaves it out.
        order: name of one of `ORDERS`.
        row_weights: of matrices, by name (`LayerWeight`).
        drifted: the inputs of blocks are those that the compressed blocks before them give.
        seed: of fine-tuning.
    """

    source: SourceCheckpoint
    plan: Plan
    method: LayerMethod
    controller: RateController | None
    work: WorkFolder
    stream: BlockStream | None = None
    recovery: RecoveryConfig | None = None
    order: str = "dense"
    row_weights: Mapping[str, Tensor] = field(default_factory=dict)
    drifted: bool = False
    seed: int = 0
    _bank: TableBank = field(init=False, default_factory=TableBank)

    def run(self, unit: int, on_progress: Callable[[str], None] = lambda note: None) -> None:
        """Compress a unit, or what is left of it.

        Args:
            unit: its number in `plan.units`.
            on_progress: told what is being done.
        """
        if self.work.is_finished(unit):
            return
        tensors = self.plan.units[unit]
        done = self._done(visible(unit, len(self.plan.units)))
        number = tensors[0].block
        if self.stream is None or number is None:
            # The last one makes up for what is missing to the target, so it should be large.
            for i, tensor in enumerate(sorted(tensors, key=lambda t: t.parameters)):
                group = Group(tensors=[tensor], hessian=None)
                self._group(unit, i, group, None, done, last=i == len(tensors) - 1)
                on_progress(tensor.name)
            self.work.write_tensors(self.work.unit_file(unit, "finished"), {}, [])
            return
        with self.stream.block(number) as block:
            self._block(unit, number, block, done, on_progress)

    def _done(self, units: range) -> dict[str, Done]:
        """What is finished of some units; the tables that they share are taken note of."""
        done = {}
        self._bank = TableBank()
        for unit in units:
            for name in self.work.group_files(unit):
                for table in self.work.read_bank(name).tables:
                    self._bank.place(table)
                facts_of = self.work.read_facts(name)
                assert facts_of is not None
                for key, facts in facts_of["tensors"].items():
                    done[key] = Done(facts["bytes"], facts["log2_gain"])
        return done

    def _block(
        self,
        unit: int,
        number: int,
        block: LoadedBlock,
        done: dict[str, Done],
        on_progress: Callable[[str], None],
    ) -> None:
        assert self.stream is not None
        original = self.stream.features(self.work.features_path(number))
        target = self.stream.features(self.work.features_path(number + 1))
        inputs = original
        if self.drifted and number:
            inputs = self.stream.features(self.work.features_path(number, "drifted"))
            forward(block, original, target, on_progress)
            groups = self._inputs(unit, block, inputs, None, on_progress)
        else:
            groups = self._inputs(unit, block, inputs, target, on_progress)
        if self.recovery is not None:  # which needs the memory
            for i, waiting in enumerate(groups):
                if waiting.hessian is not None:
                    waiting.hessian.spill(self.work.path / "hessians" / f"{unit:05d}-{i}.bin")
        dtypes = {path: p.dtype for path, p in block.module.named_parameters()}
        block.module.float()
        tuner = None
        if self.recovery is not None:
            tuner = FineTuner(
                block,
                inputs.__getitem__,
                target.__getitem__,
                inputs.batches,
                self.recovery,
                device=block.device,
                scratch=self.work.path,
            )
        parts = stages(groups, ORDERS[self.order])
        del groups  # each part's Hessians go with it
        done_tensors: list[PlannedTensor] = []
        history = []
        counter = 0
        for stage, part in enumerate(parts):
            labels = dict.fromkeys(t.label.rpartition(".")[2] for g in part for t in g.tensors)
            while part:
                group = part.pop(0)
                last = not part and stage == len(parts) - 1
                self._group(unit, counter, group, block.module, done, last=last)
                done_tensors += group.tensors
                counter += 1
                on_progress(group.tensors[0].name)
                del group  # before the block is tuned
            # After the last stage only norms are left, whose tuning gains a thousandth (log).
            if tuner is not None and stage < len(parts) - 1:
                on_progress(f"block {number}: fine-tuning")
                recovery = self._tune(unit, stage, block.module, done_tensors, dtypes, tuner)
                history.append({"name": ", ".join(labels), **asdict(recovery)})
        if self.drifted:
            path = self.work.features_path(number + 1, "drifted")
            forward(block, inputs, self.stream.features(path), on_progress)
        self._finish(unit, number, block.module, dtypes, history)

    def _inputs(
        self,
        unit: int,
        block: LoadedBlock,
        inputs: FeatureFile,
        target: FeatureFile | None,
        on_progress: Callable[[str], None],
    ) -> list[Group]:
        recorder = InputRecorder(block.module, self.plan.units[unit])
        try:
            forward(block, inputs, target, on_progress)
        finally:
            groups = recorder.close()
        return groups

    def _group(
        self,
        unit: int,
        counter: int,
        group: Group,
        block: nn.Module | None,
        done: dict[str, Done],
        *,
        last: bool,
    ) -> None:
        """Compress layers that share their input, unless that is done, and put them in place."""
        finished = self.work.read_group(unit, counter)
        if finished is None:
            final = last and unit == len(self.plan.units) - 1
            finished = self._compress(group, block, done, final=final)
            self.work.write_group(unit, counter, finished)
        done |= {t.name: Done(len(t.data), t.log2_gain) for t in finished.tensors}
        for table in finished.bank.tables:
            self._bank.place(table)
        if block is None:
            return
        for planned, tensor in zip(group.tensors, finished.tensors, strict=True):
            # What the rest of the block is tuned to is what a reader of the file will get.
            weight = self.method.restore(tensor.data, finished.bank)
            _view(block, planned).copy_(weight.T if planned.transposed else weight)

    def _compress(
        self, group: Group, block: nn.Module | None, done: dict[str, Done], *, final: bool
    ) -> FinishedGroup:
        warnings: list[str] = []
        controller = self.controller
        H = None if block is None else _hessian(group, warnings)
        layers = [
            LayerWeight(
                name=t.name,
                W=self._matrix(t, block),
                transposed=t.transposed,
                row_weights=self.row_weights.get(t.name),
                offset=0.0 if controller is None else controller.estimates[t.name].offset,
            )
            for t in group.tensors
        ]
        gain = 0.0 if controller is None else controller.log2_gain(done, self._bank_bytes())
        tried: list[tuple[float, float]] = []
        best: tuple[float, list[CompressedLayer], TableBank] | None = None
        # After the last group nothing else absorbs the error: it is compressed until it fits.
        for _ in range(1 + (RETRIES if final else 0)):
            bank = TableBank()
            results = self.method.compress(layers, H, gain, bank)
            if best is None:
                best = gain, results, bank
            if controller is None or not final:
                break
            now = done | {r.name: Done(len(r.data), gain) for r in results}
            deviation = controller.deviation(now, self._bank_bytes(bank))
            if abs(deviation) < min((abs(d) for _, d in tried), default=2.0**64):
                best = gain, results, bank
            if abs(deviation) <= TOLERANCE:
                break
            tried.append((gain, deviation))
            gain = controller.corrected(tried, sum(t.parameters for t in group.tensors))
        assert best is not None
        used, results, bank = best
        tokens = None if H is None or group.hessian is None else group.hessian.tokens
        return FinishedGroup(
            tensors=[_finished(result, used, tokens) for result in results],
            bank=bank,
            warnings=warnings,
        )

    def _bank_bytes(self, last: TableBank | None = None) -> int:
        """Size of the tables that groups share, as far as this unit may know; `last` with them."""
        bank = TableBank(self._bank.tables)
        for table in last.tables if last is not None else ():
            bank.place(table)
        return len(bank.to_bytes()) if bank.tables else 0

    def _matrix(self, tensor: PlannedTensor, block: nn.Module | None) -> Tensor:
        if block is None:
            return self.source.matrix(tensor.key, tensor.transposed, tensor.part)
        return _view(block, tensor).detach().float().contiguous().cpu()

    def _tune(
        self,
        unit: int,
        stage: int,
        block: nn.Module,
        done: list[PlannedTensor],
        dtypes: dict[str, torch.dtype],
        tuner: FineTuner,
    ) -> Recovery:
        """Fine-tune what is not compressed yet, unless that is done."""
        file = self.work.unit_file(unit, f"tuned-{stage:02d}")
        tunable, frozen = self._tunable(unit, block, done)
        found = self.work.read_tensors(file)
        if found is None:
            planned = {t.slot.parameter for t in self.plan.units[unit] if t.slot is not None}
            stored = {path: dtypes[path] for path in tunable if path not in planned}
            recovery = tuner.tune(tunable, frozen, stored, self._seed(unit, stage))
            changed = {k: p.detach().cpu() for k, p in tunable.items() if recovery.steps}
            self.work.write_tensors(file, changed, asdict(recovery))
        else:
            changed, facts = found
            recovery = Recovery(**facts)
            for path, value in changed.items():
                tunable[path].copy_(value)
        return recovery

    def _seed(self, unit: int, stage: int) -> int:
        return (self.seed * 100_003 + unit) * 1009 + stage

    def _tunable(
        self, unit: int, block: nn.Module, done: list[PlannedTensor]
    ) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        """Parameters that may change, and which places of them may not."""
        assert self.plan.skeleton is not None
        prefix = f"{self.plan.skeleton.blocks_path}.{self.plan.units[unit][0].block}."
        keys = self.plan.skeleton.keys
        left = {t.name for t in self.plan.units[unit]} - {t.name for t in done}
        open_paths = {t.slot.parameter for t in self.plan.units[unit] if t.name in left and t.slot}
        planned = {t.slot.parameter for t in self.plan.units[unit] if t.slot}
        tunable, frozen = {}, {}
        for path, parameter in block.named_parameters():
            key = keys.get(prefix + path)
            kept = key is not None and self.plan.kept.get(key, "").startswith("--keep")
            if path in open_paths or (path not in planned and key is not None and not kept):
                tunable[path] = parameter
        for tensor in done:
            if tensor.slot is not None and tensor.slot.parameter in tunable:
                path = tensor.slot.parameter
                if path not in frozen:
                    frozen[path] = torch.zeros_like(tunable[path], dtype=torch.bool)
                tensor.slot.view(frozen[path]).fill_(True)
        return tunable, frozen

    def _finish(
        self,
        unit: int,
        number: int,
        block: nn.Module,
        dtypes: dict[str, torch.dtype],
        history: list[dict[str, object]],
    ) -> None:
        """Mark the unit as finished; what the file keeps as it is and was tuned goes with it."""
        assert self.plan.skeleton is not None
        tuned = {}
        if any(entry["steps"] for entry in history):
            for path, parameter in block.named_parameters():
                key = self.plan.skeleton.keys.get(
                    f"{self.plan.skeleton.blocks_path}.{number}.{path}"
                )
                if key in self.plan.kept and not self.plan.kept[key].startswith("--keep"):
                    tuned[key] = parameter.detach().to("cpu", dtypes[path])
        self.work.write_tensors(self.work.unit_file(unit, "finished"), tuned, history)
        for stage in range(len(history)):
            self.work.remove(self.work.unit_file(unit, f"tuned-{stage:02d}"))


@torch.no_grad()
def forward(
    block: LoadedBlock,
    inputs: FeatureFile,
    target: FeatureFile | None,
    on_progress: Callable[[str], None],
) -> None:
    """Run a block over all batches; the outputs go into `target`, unless they are there."""
    with _writing(target) as write:
        for i in range(inputs.batches):
            write(block(inputs[i]))
            on_progress(f"batch {i + 1} of {inputs.batches}")


@contextmanager
def _writing(target: FeatureFile | None) -> Iterator[Callable[[Tensor], None]]:
    if target is None or target.complete:
        yield lambda batch: None
        return
    writer = target.writer()
    try:
        yield writer.append
    finally:
        writer.abandon()


def _view(block: nn.Module, tensor: PlannedTensor) -> Tensor:
    assert tensor.slot is not None
    return tensor.slot.view(block.get_parameter(tensor.slot.parameter).data)


def _hessian(group: Group, warnings: list[str]) -> Tensor | None:
    names = ", ".join(t.name for t in group.tensors)
    seen = group.hessian
    if seen is None or (seen.tokens == 0 and group.prior is None and group.tensors[0].role):
        warnings.append(f"{names}: saw no calibration inputs; compressed without feedback")
        return None
    if seen.non_finite:
        warnings.append(
            f"{names}: left out {seen.non_finite} calibration tokens with non-finite inputs"
        )
    if group.prior is not None:
        warnings.append(
            f"{names}: saw {seen.tokens} calibration tokens, fewer than its {seen.n} inputs; "
            "the mean of all experts' Hessians takes the place of the missing ones"
        )
    return seen.finish(group.prior)


def _finished(result: CompressedLayer, log2_gain: float, tokens: int | None) -> FinishedTensor:
    calibrated = tokens is not None
    return FinishedTensor(
        name=result.name,
        data=result.data,
        log2_gain=log2_gain,
        relative=result.errors.relative,
        hessian=result.errors.hessian if calibrated else None,
        damping=result.errors.damping if calibrated else None,
        tokens=tokens,
        by_importance=result.by_importance,
    )
