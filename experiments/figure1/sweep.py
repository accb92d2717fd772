"""A sweep over the settings that the paper leaves open in Figure 1."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from experiments import output
from experiments.figure1 import paper, report, report_sweep, study
from experiments.networks import mlp

# Every row changes these settings.
_BASE = {"learning_rate": 0.15, "init_std": 0.045, "decay": 1.0, "ink": 128}
# The first rows change learning rate and initial scale. The next ones change one
# setting at the pair nearest to the paper, or several that come nearer.
_CHANGES: tuple[dict[str, Any], ...] = (
    *(
        {"learning_rate": rate, "init_std": std}
        for rate, std in (
            (0.05, 0.1),
            (0.1, 0.05),
            (0.1, 0.06),
            (0.12, 0.05),
            (0.15, 0.04),
            (0.15, 0.05),
            (0.2, 0.04),
            (0.3, 0.03),
        )
    ),
    {},
    {"replacement": True},
    {"learning_rate": 0.015, "sgd_momentum": 0.9},
    {"exact_population": True},
    {"bn_momentum": 0.9},
    {"init": "uniform"},
    {"init_per_layer": True},
    {"init_per_layer": True, "init_std": 0.03},
    {"decay": 0.3},
    {"decay": 0.1},
    {"decay": 0.1, "learning_rate": 0.2},
    {"decay": 0.1, "ink": 64},
    {"decay": 0.1, "ink": 64, "init_std": 0.042},
    {"decay": 0.3, "ink": 64, "init_std": 0.042},
    {"decay": 0.1, "learning_rate": 0.3, "init_std": 0.03},
    {"decay": 0.01, "learning_rate": 0.3, "init_std": 0.04},
    {"ink": 1},
    {"ink": 64},
)


@dataclasses.dataclass(frozen=True)
class Figure1Sweep:
    """Learning rate, initial scale and more for figure1 on MNIST (about 40 min)."""

    steps: int = 50_000
    """Mini-batches per network and row."""
    seeds: int = 1
    """Runs per row."""
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own default."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for table and JSON."""

    def run(self) -> None:
        """Writes `figure1_sweep.json` and `.md` after each row; skips known rows."""
        output.check_folder(self.out)
        path = self.out / "figure1_sweep.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        for change in _CHANGES:
            config = study.Figure1(
                dataset="mnist",
                steps=self.steps,
                seeds=self.seeds,
                record_every=1000,
                hp=mlp.Hyperparameters(**(_BASE | change)),
                data_dir=self.data_dir,
                out=self.out,
            )
            if any(row["config"] == study.identity(config) for row in rows):
                continue
            print(change or "the pair that comes nearest")
            rows.append(make_row(config, change))
            output.write_result(path, "figure1_sweep", self, {"rows": rows})
            report_sweep.write(path)
            study.forget(config)
        print(report_sweep.write(path))


def make_row(config: study.Figure1, change: dict[str, Any]) -> dict[str, Any]:
    """Trains one configuration and compares it with the paper."""
    records = study.train(config)
    steps = study.recorded_steps(config)
    mean = {n: records[f"{n}/accuracy"].mean(1) for n in mlp.NETWORKS}
    return {
        "change": change,
        "config": study.identity(config),
        "accuracy": {
            network: [
                round(float(accuracy[steps == step][0]), 4)
                for step in paper.ACCURACY_STEPS
                if step <= steps[-1]
            ]
            for network, accuracy in mean.items()
        },
        "distance_to_paper": {
            network: report.distance_to_paper(network, steps, accuracy)
            for network, accuracy in mean.items()
        },
        "with_bn_above": bool(np.all(mean["with_bn"] > mean["without_bn"])),
    }
