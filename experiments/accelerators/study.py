"""Compiles training steps for TPUs and GPUs that this machine need not have."""

import concurrent.futures
import dataclasses
import pathlib
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Literal

import tqdm

from experiments import output
from experiments.accelerators import capacity, lists, pods, report, results
from experiments.programs import cases, targets


@dataclasses.dataclass(frozen=True)
class Accelerators:
    """Training steps compiled for TPUs and an H200, not run (about two hours)."""

    platform: Literal["tpu", "gpu", "all"] = "all"
    """The compilers to ask: libtpu, the CUDA plugin, or all that are installed."""
    network: str | None = None
    """Only this program, such as resnet50; default: all."""
    quick: bool = False
    """Only the layer and the small network, jaxbn and Flax (two minutes)."""
    memory: bool = True
    """Search the largest batches too (the last half hour)."""
    jobs: int = 2
    """Compilations at a time: each keeps one core busy, and a second one at times."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON; a program the JSON holds is not compiled."""

    def run(self) -> None:
        """Writes `accelerators.json`, `.md` and `.png`."""
        every = lists.all_cases()
        programs = sorted({case.program for case in every})
        if self.network not in (None, *programs):
            raise ValueError(
                f"`network` must be one of {programs}, not {self.network}."
            )
        output.check_folder(self.out)
        path = self.out / "accelerators.json"
        known = results.Results(path)
        platforms = targets.PLATFORMS if self.platform == "all" else (self.platform,)
        missing = {each: targets.missing(each) for each in platforms}
        for line in filter(None, missing.values()):
            print(line)
        ready = [each for each in platforms if not missing[each]]
        listed = {results.key(dataclasses.asdict(case)) for case in every}
        known.forget(lambda row: not row["images"] and results.key(row) not in listed)
        try:
            chosen = lists.quick_cases() if self.quick else every
            _compile(self._chosen(chosen, ready), known, self.jobs)
            if self.memory and not self.quick:
                _find_largest(self._chosen(lists.memory_cases(), ready), known)
        except KeyboardInterrupt:
            sys.exit(f"Stopped; {path} has what was done, the same command goes on.")
        known.content["pods"] = pods.predictions()
        known.write()
        print(report.write(path))

    def _chosen(self, from_these: list[cases.Case], ready: Sequence[str]):
        return [
            case
            for case in from_these
            if case.platform in ready and self.network in (None, case.program)
        ]


def _compile(chosen: list[cases.Case], known: results.Results, jobs: int) -> None:
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


def _find_largest(chosen: list[cases.Case], known: results.Results) -> None:
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
