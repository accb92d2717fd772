"""Writes every results page again from its JSON, and the tables in READMEs."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator

from experiments import output
from experiments.accelerators import report as accelerators
from experiments.accuracy import report as accuracy
from experiments.batch_size import report as batch_size
from experiments.benchmark import report as benchmark
from experiments.covariate_shift import report as covariate_shift
from experiments.crops_and_ensemble import report as crops_and_ensemble
from experiments.device import report as device
from experiments.feature_scaling import report as feature_scaling
from experiments.figure1 import report as figure1
from experiments.figure1 import report_sweep as figure1_sweep
from experiments.fine_tune import report as fine_tune
from experiments.identity import report as identity
from experiments.imagenet import report as imagenet
from experiments.inference_statistics import report as inference_statistics
from experiments.initialisation import report as initialisation
from experiments.learning_rate import report as learning_rate
from experiments.learning_rate_ladder import report as learning_rate_ladder
from experiments.outside_gradient import report as outside_gradient
from experiments.padding import report as padding
from experiments.placement import report as placement
from experiments.policy_cost import report as policy_cost
from experiments.regularisation import report as regularisation
from experiments.saturation import report as saturation
from experiments.scale_invariance import report as scale_invariance
from experiments.sync_cost import report as sync_cost
from experiments.sync_policies import report as sync_policies
from experiments.whitening import report as whitening

WRITERS: dict[str, Callable[[pathlib.Path], str]] = {
    "accelerators": accelerators.write,
    "accuracy": accuracy.write,
    "batch_size": batch_size.write,
    "benchmark": benchmark.write,
    "covariate_shift": covariate_shift.write,
    "crops_and_ensemble": crops_and_ensemble.write,
    "device": device.write,
    "feature_scaling": feature_scaling.write,
    "figure1": figure1.write,
    "figure1_sweep": figure1_sweep.write,
    "fine_tune": fine_tune.write,
    "identity": identity.write,
    "imagenet": imagenet.write,
    "inference_statistics": inference_statistics.write,
    "initialisation": initialisation.write,
    "learning_rate": learning_rate.write,
    "learning_rate_ladder": learning_rate_ladder.write,
    "outside_gradient": outside_gradient.write,
    "padding": padding.write,
    "placement": placement.write,
    "policy_cost": policy_cost.write,
    "regularisation": regularisation.write,
    "saturation": saturation.write,
    "scale_invariance": scale_invariance.write,
    "sync_cost": sync_cost.write,
    "sync_policies": sync_policies.write,
    "whitening": whitening.write,
}
"""The functions that write pages, by the `study` that a JSON names."""

ROOT = pathlib.Path(__file__).parents[1]

# It matches `<!-- table FILE: first words of a paragraph -->`, the table, and
# `<!-- end -->`.
_QUOTED = re.compile(
    r"(?P<start><!-- table (?P<file>\S+): (?P<title>.+?) -->\n)"
    r"(?P<table>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Pages:
    """Every results page again from its JSON, and the tables that READMEs quote."""

    root: pathlib.Path = ROOT
    """The project."""

    def run(self) -> None:
        """Writes the pages and READMEs, and prints their names."""
        for path in results(self.root):
            WRITERS[json.loads(path.read_text())["study"]](path)
            print(path.with_suffix(".md").relative_to(self.root))
        for path in readmes(self.root):
            text = path.read_text()
            if (filled := fill(text, path.parent)) != text:
                output.write_text(path, filled)
                print(path.relative_to(self.root))


def results(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the JSON files of all studies."""
    return sorted(root.glob("experiments/*/results/*.json"))


def readmes(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields every README that may quote a table."""
    yield root / "README.md"
    yield from sorted(root.glob("experiments/**/README.md"))


def fill(text: str, folder: pathlib.Path) -> str:
    """Returns `text` with its quoted tables replaced by those of the results.

    Args:
      text: Markdown; `<!-- table FILE: TITLE -->` and `<!-- end -->` enclose a table.
      folder: the folder that file names are relative to.

    Raises:
      ValueError: if a file has no such table.
    """

    def quoted(match: re.Match[str]) -> str:
        page = (folder / match["file"]).read_text()
        return f"{match['start']}\n{table(page, match['title'])}\n\n{match['end']}"

    return _QUOTED.sub(quoted, text)


def table(page: str, title: str) -> str:
    """Returns the first table after the paragraph that starts with `title`."""
    paragraphs = page.split("\n\n")
    for place, paragraph in enumerate(paragraphs):
        if paragraph.startswith(title):
            for later in paragraphs[place:]:
                if later.startswith("|"):
                    return later.rstrip("\n")
    raise ValueError(f"There is no table after a paragraph that starts with {title!r}.")
