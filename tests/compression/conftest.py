"""A run of the pipeline without the command around it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nwc.coding.tables import TableBank
from nwc.compression.executor import CALIBRATION_FILE, RATE_FILE, Inline, Job
from nwc.compression.pipeline import compress_model
from nwc.compression.plan import Plan, make_plan
from nwc.compression.rate_control import Done, RateController
from nwc.compression.recovery import RecoveryConfig
from nwc.compression.source import SourceCheckpoint
from nwc.compression.state import WorkFolder
from nwc.formats.shipped import shipped_codec
from nwc.methods.ecsq import Ecsq
from nwc.methods.neural import Neural


def make_method(name):
    return Ecsq() if name == "ecsq" else Neural(shipped_codec("default", 4.0)[0])


@dataclass
class Run:
    """Everything that a run needs, ready to begin or to go on."""

    job: Job
    source: SourceCheckpoint
    plan: Plan
    work: WorkFolder
    controller: RateController

    def compressor(self):
        return self.job.compressor(self.source, self.plan)

    def units(self, executor=None, on_progress=lambda note: None):
        compressor = self.compressor()
        return compress_model(
            self.plan,
            self.work,
            executor or Inline(compressor, on_progress),
            stream=compressor.stream,
            drifted=self.job.drifted,
        )

    def tensors(self, **options):
        """Name -> finished tensor."""
        groups = [group for unit in self.units(**options) for group in unit.groups()]
        return {t.name: t for group in groups for t in group.tensors}

    def bank(self):
        """The tables that all groups share."""
        bank = TableBank()
        for unit in range(len(self.plan.units)):
            for file in self.work.group_files(unit):
                for table in self.work.read_bank(file).tables:
                    bank.place(table)
        return bank

    def done(self, tensors):
        return {name: Done(len(t.data), t.log2_gain) for name, t in tensors.items()}


@pytest.fixture
def prepare(tmp_path):
    """Makes a `Run`; a folder of the same name holds the same run."""

    begun = []

    def make(
        folder: Path,
        *,
        method="ecsq",
        target=4.5,
        calibrated=False,
        fixed_bytes=0,
        steps=0,
        tokens=None,
        drifted=False,
        keep=(),
        name="work",
        threads=1,
    ) -> Run:
        source = SourceCheckpoint(folder)
        plan, how = make_plan(source, keep), make_method(method)
        work = WorkFolder(tmp_path / name)
        work.open({}, restart=False)
        begun.append(work)
        if tokens is None:
            generator = torch.Generator().manual_seed(0)
            tokens = torch.randint(256, (16, 32), generator=generator)
        controller = RateController.measure(
            source, plan, how, target=target, calibrated=calibrated, fixed_bytes=fixed_bytes
        )
        work.write_json(RATE_FILE, controller.to_json())
        work.write_tensors(CALIBRATION_FILE, {"windows": tokens}, {})
        job = Job(
            folder=folder,
            keep=keep,
            method=how,
            work=work.path,
            calibrated=calibrated,
            recovery=RecoveryConfig(steps=steps) if steps else None,
            order="experts" if any(t.role for t in plan.tensors) else "dense",
            waterfill="columns",
            survey_tokens=0,
            drifted=drifted,
            seed=0,
            device="cpu",
            threads=threads,
        )
        return Run(job, source, plan, work, controller)

    yield make
    for work in begun:
        work.close(remove=False)
