"""Compiles training steps for TPUs and GPUs that this machine need not have."""

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import tqdm

from experiments.compilers import cases, targets
from experiments.framework import options, output, study
from experiments.library.accelerators import (
    capacity,
    figure,
    figure_timed,
    lists,
    pods,
    process,
    report,
    report_timed,
    timed,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerators(study.Study):
    """Compiles training steps for TPUs and an H200 without running them (2 hours)."""

    name = "accelerators"
    former_names: ClassVar = {"device": ["--device"]}

    platform: Literal["tpu", "gpu", "all"] = "all"
    """The compilers to use: libtpu, the CUDA plugin, or all that are installed."""
    network: str | None = None
    """The one program to compile, such as resnet50. Without it all are compiled."""
    memory: bool = True
    """Search the largest batches too, which takes the last half hour."""
    jobs: int = 2
    """The number of compilations at a time. Each keeps a core busy, and a second one at
    times."""
    device: bool = False
    """Time training steps on the GPU of this machine instead, beside Flax and
    PyTorch (10 minutes). With `quick`, two small programs try it on a CPU."""
    rounds: int = 10
    """The number of rounds of `device`, in which the programs of a group take turns."""

    @staticmethod
    def report(result: output.Result) -> str:
        return (report_timed if "rounds" in result else report).table(result)

    @staticmethod
    def draw(result: output.Result) -> Any:
        return (figure_timed if "rounds" in result else figure).draw(result)

    def file(self) -> str:
        return "device" if self.device else "accelerators"

    def check(self) -> None:
        options.check_at_least(self, rounds=2, jobs=1)
        programs = sorted({case.program for case in lists.all_cases()})
        if self.network not in (None, *programs):
            raise ValueError(
                f"`network` must be one of {programs}, not {self.network}."
            )

    def results(self, known: output.Result) -> Iterator[output.Result]:
        if self.device:
            yield from timed.results(self.rounds, self.quick)
            return
        rows = process.Results(self.out / f"{self.file()}.json")
        platforms = targets.PLATFORMS if self.platform == "all" else (self.platform,)
        missing = {each: targets.missing(each) for each in platforms}
        for line in filter(None, missing.values()):
            print(line)
        ready = [each for each in platforms if not missing[each]]
        every = lists.all_cases()
        listed = {process.key(dataclasses.asdict(case)) for case in every}
        rows.forget(lambda row: not row["images"] and process.key(row) not in listed)
        chosen = lists.quick_cases() if self.quick else every
        _compile(self._chosen(chosen, ready), rows, self.jobs)
        if self.memory and not self.quick:
            _find_largest(self._chosen(lists.memory_cases(), ready), rows)
        rows.content["pods"] = pods.predictions()
        rows.write()
        # Each row has the versions of its compiler.
        yield rows.content | {"versions": {}}

    def _chosen(self, from_these: list[cases.Case], ready: Sequence[str]):
        return [
            case
            for case in from_these
            if case.platform in ready and self.network in (None, case.program)
        ]


def _compile(chosen: list[cases.Case], known: process.Results, jobs: int) -> None:
    stopped = threading.Event()

    def compile_case(case):
        try:
            return None if stopped.is_set() else known.compile(case)
        except KeyboardInterrupt:
            stopped.set()  # This must happen before this thread takes the next case.
            raise

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        rows = pool.map(compile_case, chosen)
        bar = tqdm.tqdm(rows, total=len(chosen), unit="program", disable=not chosen)
        try:
            for case, row in zip(chosen, bar, strict=True):
                tqdm.tqdm.write(f"{case.label()}: {report.line(row)}")
        except KeyboardInterrupt:
            stopped.set()
            raise


def _find_largest(chosen: list[cases.Case], known: process.Results) -> None:
    for case in (bar := tqdm.tqdm(chosen, unit="search", disable=not chosen)):
        bar.set_postfix_str(case.label())
        points = capacity.search(case, known.compile)
        known.forget(_left_over(case, points))
        known.write()
        tqdm.tqdm.write(
            f"{case.label()}: {capacity.largest(points, capacity.STEP[case.platform])}"
        )


def _left_over(case: cases.Case, points) -> Callable[[dict], bool]:
    """Returns a test for rows of an earlier search at sizes not visited now."""
    mine = dataclasses.asdict(case)

    def left_over(row):
        if not row["images"] or row["images"] in points:
            return False
        return all(row[name] == mine[name] for name in mine if name != "images")

    return left_over
