import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import __main__ as main
from experiments.data import datasets
from experiments.framework import output
from experiments.networks import mlp
from experiments.paper.figure1 import figure, paper
from experiments.paper.figure1 import report as figure1_report
from experiments.paper.figure1 import study as figure1
from experiments.paper.figure1 import sweep as figure1_sweep


def test_paper_tables_are_whole():
    for network in mlp.NETWORKS:
        assert len(paper.ACCURACY[network]) in (11, 12)
        for trace in paper.TRACES[network]:
            assert len(trace) == len(paper.PERCENTILE_STEPS)


def empty_records(config):
    """Returns the records of a run that has not recorded anything yet."""
    shape = config.steps // config.record_every, config.seeds
    made = {}
    for network in mlp.NETWORKS:
        made[f"{network}/accuracy"] = np.zeros(shape, np.float32)
        units = (len(paper.PERCENTILES), config.hp.hidden[-1])
        made[f"{network}/percentiles"] = np.zeros((*shape, *units), np.float32)
    return made


class TestSummary:
    def make(self, dataset="mnist"):
        config = figure1.Figure1(
            dataset=dataset, steps=8000, record_every=4000, seeds=2
        )
        records = empty_records(config)
        records["with_bn/accuracy"][:] = [[0.94, 0.96], [0.97, 0.98]]
        records["without_bn/accuracy"][:] = [[0.7, 0.7], [0.91, 0.93]]
        records["with_bn/percentiles"][..., 7] = 1.0
        return figure1_report.summarize(
            config.identity(), np.array(config.recorded_steps()), records
        )

    def test_table_and_distance(self):
        result = self.make()
        row = result["table"]["with_bn"]
        assert row["accuracy"] == {"4000": 0.95, "8000": 0.975}
        assert row["steps_to_best_without_bn"] == 4000
        assert result["table"]["without_bn"]["steps_to_best_without_bn"] == 8000
        expected = (abs(0.95 - 0.953) + abs(0.975 - 0.967)) / 2
        assert result["distance_to_paper"]["with_bn"] == round(expected, 4)
        assert "2.0 times fewer steps" in figure1_report.table(result)

    def test_distance_only_for_the_papers_data(self):
        assert "distance_to_paper" not in self.make("digits")

    @pytest.mark.parametrize(
        ("dataset", "title"),
        [("mnist", "binarised MNIST"), ("digits", "grey 8x8 digits")],
    )
    def test_pages_say_how_images_are_read(self, dataset, title):
        result = self.make(dataset)
        heading, *_ = figure1_report.table(result).splitlines()
        assert heading == f"Test accuracy, mean of 2 seed(s), {title}:"
        assert figure.draw(result).get_suptitle() == f"{title}, 2 seeds"

    @pytest.mark.first_case
    @pytest.mark.parametrize("dataset", ["mnist", "digits"])
    def test_equal_results_give_equal_pages(self, dataset, tmp_path):
        config = figure1.Figure1(dataset=dataset)
        pages = {}
        for name in "ab":
            (tmp_path / name).mkdir()
            path = tmp_path / name / "figure1.json"
            output.write_result(path, config, self.make(dataset))
            assert "with BN" in config.write_pages(path)
            pages[name] = {p.name: p.read_bytes() for p in path.parent.iterdir()}
        assert pages["a"] == pages["b"]
        assert set(pages["a"]) == {f"figure1.{end}" for end in ("json", "md", "png")}
        assert pages["a"]["figure1.png"].startswith(b"\x89PNG")

    def test_typical_unit(self):
        traces = np.random.default_rng(0).standard_normal((9, 3, 5))
        traces[:, :, 2] = np.median(traces, -1)
        assert figure1_report.typical_unit(traces) == 2

    def test_distances_of_units_from_the_papers_traces(self):
        steps = np.array([250, 600, 1000, 50_000])
        traces = np.zeros((4, 3, 2))
        at = [paper.PERCENTILE_STEPS.index(step) for step in steps[[0, 2, 3]]]
        for percentile, values in enumerate(paper.TRACES["with_bn"]):
            traces[[0, 2, 3], percentile, 1] = np.array(values)[at]
        traces[2, 0, 1] += 0.9  # Of nine values one.
        distances = figure1_report.trace_distances("with_bn", steps, traces)
        expected = np.abs(np.array(paper.TRACES["with_bn"])[:, at]).mean()
        np.testing.assert_allclose(distances, [expected, 0.1])
        made = self.make()["traces_to_paper"]["with_bn"]  # Of 4,000 steps alone.
        assert made["typical"] >= made["nearest"] > 0


def test_sweep_rows_are_not_made_twice(tmp_path, monkeypatch):
    trained = []

    def records(self):
        trained.append(self.hp)
        return empty_records(self)

    monkeypatch.setattr(figure1.Figure1, "records", records)
    for name in ("figure1_sweep", "figure1"):
        options = ["--sweep"] * (name == "figure1") + ["--out", str(tmp_path)]
        main.main([name, *options])
    rows = json.loads((tmp_path / "figure1_sweep.json").read_text())["rows"]
    assert len(trained) == len(rows) == len(figure1_sweep.CHANGES)
    table = (tmp_path / "figure1_sweep.md").read_text()
    assert "| learning_rate 0.15, init_std 0.045, replacement True |" in table


ROOT = pathlib.Path(__file__).parents[3]
SHORT = "--seeds 2 --steps 1000 --record-every 50 --checkpoint-every 100"


class TestImages:
    """Tests the images that the networks are trained and evaluated on."""

    def shades(self, monkeypatch, **options):
        """Returns the different pixel values of each set of images of a run."""
        given = []

        def keep(self, runs, train, held_out, workers):
            given.extend([train["image"], held_out["image"], held_out["population"]])
            return {}

        monkeypatch.setattr(figure1.Figure1, "train", keep)
        figure1.Figure1(**options).records()
        return [np.unique(images).tolist() for images in given]

    def test_digits_are_grey(self, monkeypatch, tmp_path):
        for shades in self.shades(monkeypatch, data_dir=tmp_path):
            assert len(shades) == 17

    def test_mnist_is_binary(self, monkeypatch):
        images = np.arange(6 * 784, dtype=np.int64) % 256
        images = images.reshape(6, 28, 28, 1).astype(np.uint8)
        labels = np.zeros(6, np.int32)
        monkeypatch.setattr(datasets, "load", lambda *_: (images, labels))
        for shades in self.shades(monkeypatch, dataset="mnist"):
            assert shades == [0, 1]

    def test_a_threshold_decides_only_the_numbers_of_binary_images(self):
        for dataset, ink in (("mnist", 64), ("digits", None)):
            config = figure1.Figure1(dataset=dataset)
            assert config.identity()["hp"]["ink"] == ink


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def command(data_dir, out, *options):
    return [
        sys.executable, "-m", "experiments", "figure1", *SHORT.split(),
        "--data-dir", str(data_dir), "--out", str(out), *options,
    ]  # fmt: skip


def run(*args):
    return subprocess.run(
        command(*args), cwd=ROOT, check=True, capture_output=True, text=True
    )


def ended_by(end, data_dir, out, after):
    """Ends a run by a signal once step `after` is saved; returns its stderr."""
    # The run inherits whether Ctrl-C is ignored, as in a background job of a shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(data_dir, out), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not any(  # Only the last two are kept.
        path.name.isdigit() and int(path.name) >= after
        for path in out.glob("checkpoints/*/*/*")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(end)
    _, said = process.communicate()
    assert process.returncode
    return said


@pytest.mark.exhaustive
def test_killed_and_resumed_gives_the_numbers_of_an_uninterrupted_run(
    data_dir, tmp_path
):
    whole = run(data_dir, tmp_path / "whole")
    assert "| with BN |" in whole.stdout
    name = "figure1_digits.json"
    expected = (tmp_path / "whole" / name).read_bytes()

    out = tmp_path / "killed"
    said = ended_by(signal.SIGINT, data_dir, out, after=100)
    assert said.endswith("\nStopped. Run the same command again to resume.\n")
    assert "Traceback" not in said
    ended_by(signal.SIGKILL, data_dir, out, after=300)
    assert not (out / name).exists()
    resumed = run(data_dir, out)
    assert "Resumed at step" in resumed.stdout
    assert (out / name).read_bytes() == expected
    assert not list(out.glob("checkpoints/*"))

    accuracy = json.loads((out / name).read_text())["accuracy"]["with_bn"]
    first, second = np.array(accuracy).T
    assert np.any(first != second)  # Seeds differ.

    again = run(data_dir, tmp_path / "whole")
    assert "This run is finished" in again.stdout
    assert (tmp_path / "whole" / name).read_bytes() == expected
