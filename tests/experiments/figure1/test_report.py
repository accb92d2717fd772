import numpy as np
import pytest

from experiments import output
from experiments.figure1 import figure, paper
from experiments.figure1 import report as figure1_report
from experiments.figure1 import study as figure1
from experiments.networks import mlp


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
            figure1.identity(config), figure1.recorded_steps(config), records
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

    @pytest.mark.parametrize("dataset", ["mnist", "digits"])
    def test_equal_results_give_equal_pages(self, dataset, tmp_path):
        config = figure1.Figure1(dataset=dataset)
        pages = {}
        for name in "ab":
            (tmp_path / name).mkdir()
            path = tmp_path / name / "figure1.json"
            output.write_result(path, "figure1", config, self.make(dataset))
            assert "with BN" in figure1_report.write(path)
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
