"""The base of the studies that train networks on a data set and record progress."""

import dataclasses
from collections.abc import Sequence

from experiments.data import datasets
from experiments.framework import recording, study


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingStudy(study.Study):
    """A study of networks that are trained; a subclass has a field `steps`."""

    dataset: datasets.Dataset = "fashion_mnist"
    """The data set to train on; `digits` needs no preparation."""
    seeds: int = 3
    """The number of trainings side by side, each with its own initial weights and
    mini-batches."""

    def interval(self) -> int:
        """Returns the number of steps between two records."""
        return self.record_every

    def plan(self) -> recording.Plan:
        """Returns the plan of the trainings, with a checkpoint after every record."""
        every = self.interval()
        return recording.Plan(self.steps, every, self.seeds, every)

    def recorded_steps(self) -> list[int]:
        """Returns the steps after which records are taken, `[records]`."""
        return recording.recorded_steps(self.plan()).tolist()

    def check(self) -> None:
        recording.check(self.plan())

    def train(
        self,
        runs: Sequence[recording.Run],
        data: recording.Batch,
        held_out: recording.Batch,
        *,
        plan: recording.Plan | None = None,
        workers: int = 1,
    ) -> dict[str, recording.Records]:
        """Trains all runs as `recording.train`, with checkpoints of these options."""
        plan = plan or self.plan()
        return recording.train(runs, plan, data, held_out, self.checkpoints(), workers)

    def splits(self):
        """Returns training set and test set as flat images in [0, 1] and labels."""
        return datasets.flat_splits(self.dataset, self.data_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurveStudy(TrainingStudy):
    """A study with an option for the number of records, not the steps between them."""

    records: int = 20
    """The number of points of the curves; `steps` must be a multiple of it."""

    def interval(self) -> int:
        return max(1, self.steps // max(1, self.records))

    def check(self) -> None:
        if self.records < 1:
            raise ValueError(f"`records` must be at least 1, got {self.records}.")
        super().check()
