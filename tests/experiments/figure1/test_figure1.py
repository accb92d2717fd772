import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.figure1 import figure, paper
from experiments.figure1 import report as figure1_report
from experiments.figure1 import study as figure1
from experiments.figure1 import sweep as figure1_sweep
from experiments.networks import mlp

ROOT = pathlib.Path(__file__).parents[3]
SHORT = ("--steps", "600", "--record-every", "50", "--checkpoint-every", "100")


def make_split(examples=30, pixels=16):
    rng = np.random.default_rng(0)
    return mlp.Split(
        jnp.asarray(rng.integers(2, size=(examples, pixels), dtype=np.uint8)),
        jnp.asarray(rng.integers(10, size=examples)),
    )


class TestBatches:
    @pytest.mark.parametrize("replacement", [False, True])
    def test_do_not_depend_on_where_a_run_starts(self, replacement):
        hp = mlp.Hyperparameters(batch_size=4, replacement=replacement)
        whole = mlp.batch_indices(hp, 3, 30, 0, 40)
        parts = [mlp.batch_indices(hp, 3, 30, start, 8) for start in range(0, 40, 8)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert whole.shape == (40, 4)
        assert not np.array_equal(whole, mlp.batch_indices(hp, 4, 30, 0, 40))

    def test_every_epoch_is_a_permutation(self):
        hp = mlp.Hyperparameters(batch_size=5)
        indices = mlp.batch_indices(hp, 0, 30, 0, 12).reshape(2, 30)
        for epoch in indices:
            assert sorted(epoch) == list(range(30))
        assert not np.array_equal(*indices)


class TestNetworks:
    def test_same_initial_weights(self):
        states = mlp.init_states(mlp.Hyperparameters(), jax.random.key(0), 16)
        with_bn, without_bn = (states[network].params for network in mlp.NETWORKS)
        for i in range(4):
            name = f"Dense_{i}"
            chex.assert_trees_all_equal(
                with_bn[name]["kernel"], without_bn[name]["kernel"]
            )
            assert ("bias" in with_bn[name]) == (i == 3)
            assert "bias" in without_bn[name]
        assert set(with_bn) - set(without_bn) == {f"BatchNorm_{i}" for i in range(3)}

    def test_one_trace_for_a_whole_run(self):
        chex.clear_trace_counter()
        split, hp = make_split(), mlp.Hyperparameters(batch_size=5)
        step = jax.jit(chex.assert_max_traces(mlp.train, n=1))
        state = mlp.init_states(hp, jax.random.key(0), 16)["with_bn"]
        before = jax.tree.map(jnp.copy, state.params)
        for start in (0, 10):
            state = step(state, split, mlp.batch_indices(hp, 0, 30, start, 10))
        assert int(state.step) == 20
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(state.params, before)

    def test_accuracy_by_exact_population_statistics(self):
        split, pixels = make_split(), 16
        hp = mlp.Hyperparameters(exact_population=True)
        state = mlp.init_states(hp, jax.random.key(0), pixels)["with_bn"]
        model = mlp.make_model(hp, "with_bn")
        images = split.images.astype(jnp.float32)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        step = jax.jit(
            lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])[1]
        )
        for _ in range(800):  # 0.99^800 of the initial statistics remain.
            variables |= step(variables)
        logits, _ = model.apply(variables, images, train=False)
        expected = jnp.mean(logits.argmax(-1) == split.labels)
        assert mlp.accuracy(hp, "with_bn", state, split, split) == expected
        running = dataclasses.replace(hp, exact_population=False)
        logits, _ = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            images,
            train=False,
        )
        expected = jnp.mean(logits.argmax(-1) == split.labels)
        assert mlp.accuracy(running, "with_bn", state, split, split) == expected

    def test_percentiles_are_those_of_the_normalised_batch(self):
        hp, split = mlp.Hyperparameters(), make_split(examples=500)
        states = mlp.init_states(hp, jax.random.key(0), 16)
        low, high = mlp.input_percentiles(
            hp, "with_bn", states["with_bn"], split.images, (15.87, 84.13)
        )
        # One standard deviation of a distribution that is nearly normal.
        assert jnp.median(jnp.abs(low + 1)) < 0.1
        assert jnp.median(jnp.abs(high - 1)) < 0.1


class TestSummary:
    def make(self, dataset="mnist"):
        config = figure1.Figure1(
            dataset=dataset, steps=8000, record_every=4000, seeds=2
        )
        records = figure1._empty_records(config)
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

    def test_figure(self, tmp_path):
        for dataset in ("mnist", "digits"):
            figure.draw(tmp_path / "a.png", self.make(dataset))
            figure.draw(tmp_path / "b.png", self.make(dataset))
            content = (tmp_path / "a.png").read_bytes()
            assert content.startswith(b"\x89PNG")
            assert content == (tmp_path / "b.png").read_bytes()
        assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}

    def test_typical_unit(self):
        traces = np.random.default_rng(0).standard_normal((9, 3, 5))
        traces[:, :, 2] = np.median(traces, -1)
        assert figure1_report.typical_unit(traces) == 2

    @pytest.mark.parametrize("field", ["steps", "checkpoint_every"])
    def test_bad_intervals(self, field):
        with pytest.raises(ValueError, match=f"`{field}` must be a multiple"):
            figure1.train(figure1.Figure1(**{field: 777}))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--steps 0", "`steps` must be at least 1, got 0"),
            ("--seeds 0", "`seeds` must be at least 1, got 0"),
            ("--batch-size 0", "`batch_size` must be at least 1, got 0"),
            ("--batch-size 2000", "`batch_size` must be at most the 1500"),
            ("--hidden 100 0", "`hidden` must be at least 1, got 0"),
            ("--learning-rate -1", "`learning_rate` must be positive"),
            ("--learning-rate nan", "`learning_rate` must be positive"),
            ("--bn-momentum 2", r"`bn_momentum` must lie in \[0, 1\], got 2"),
            ("--out setup.cfg/x", "`out` must be a folder that can be written"),
        ],
    )
    def test_bad_options(self, options, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "setup.cfg").touch()
        options = ["--data-dir", str(tmp_path / "data"), *options.split()]
        with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
            main.main(["figure1", *options])


def test_paper_tables_are_whole():
    for network in mlp.NETWORKS:
        assert len(paper.ACCURACY[network]) in (11, 12)
        for trace in paper.TRACES[network]:
            assert len(trace) == len(paper.PERCENTILE_STEPS)


def test_sweep_rows_are_not_made_twice(tmp_path, monkeypatch):
    made = []

    def make_row(config, change):
        made.append(change)
        return {
            "change": change,
            "config": figure1.identity(config),
            "accuracy": {n: [0.9] * 11 for n in mlp.NETWORKS},
            "distance_to_paper": dict.fromkeys(mlp.NETWORKS, 0.01),
            "with_bn_above": True,
        }

    monkeypatch.setattr(figure1_sweep, "make_row", make_row)
    for _ in range(2):
        figure1_sweep.Figure1Sweep(out=tmp_path).run()
    assert len(made) == len(
        json.loads((tmp_path / "figure1_sweep.json").read_text())["rows"]
    )
    table = (tmp_path / "figure1_sweep.md").read_text()
    assert "| learning_rate 0.15, init_std 0.045, replacement True |" in table


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def command(data_dir, out, *options):
    return [
        sys.executable, "-m", "experiments", "figure1", *SHORT,
        "--data-dir", str(data_dir), "--out", str(out), *options,
    ]  # fmt: skip


def run(*args):
    return subprocess.run(
        command(*args), cwd=ROOT, check=True, capture_output=True, text=True
    )


def ended_by(end, data_dir, out, after):
    """What a run says on stderr that is ended when step `after` is saved."""
    process = subprocess.Popen(
        command(data_dir, out), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob(f"checkpoints/*/{after}")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(end)
    _, said = process.communicate()
    assert process.returncode
    return said


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
    (run_dir,) = out.glob("checkpoints/*")
    (run_dir / "500.orbax-checkpoint-tmp-1").mkdir()

    resumed = run(data_dir, out)
    assert "Resumed at step" in resumed.stdout
    assert "Ignored a half-written checkpoint" in resumed.stdout
    assert (out / name).read_bytes() == expected
    assert not list(out.glob("checkpoints/*"))

    again = run(data_dir, tmp_path / "whole")
    assert "This run is finished" in again.stdout
    assert (tmp_path / "whole" / name).read_bytes() == expected


def test_seeds_differ(data_dir, tmp_path):
    run(data_dir, tmp_path, "--seeds", "2", "--steps", "100")
    result = json.loads((tmp_path / "figure1_digits.json").read_text())
    first, second = np.array(result["accuracy"]["with_bn"]).T
    assert np.any(first != second)
