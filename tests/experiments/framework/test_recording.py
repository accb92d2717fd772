import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.framework import recording
from experiments.framework.checkpoints import Folder
from experiments.framework.recording import Plan, Run
from jaxbn import training


@pytest.mark.parametrize("replacement", [False, True])
def test_they_do_not_depend_on_where_a_run_starts(replacement):
    def indices(seed, start, steps):
        return recording.indices(seed, 30, 4, start, steps, replacement=replacement)

    whole = indices(3, 0, 40)
    parts = [indices(3, start, 8) for start in range(0, 40, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape == (40, 4)
    assert whole.dtype == np.int32
    assert not np.array_equal(whole, indices(4, 0, 40))


def test_every_epoch_is_a_permutation():
    indices = recording.indices(0, 32, 5, 0, 12).reshape(2, 30)  # Two are left over.
    for epoch in indices:
        assert len(set(epoch)) == 30
    assert not np.array_equal(*indices)


def test_fixed_batches_come_in_another_order():
    whole = recording.indices(0, 32, 5, 0, 18, fixed=True)
    epochs = [sorted(tuple(sorted(batch)) for batch in epoch)
              for epoch in whole.reshape(3, 6, 5)]  # fmt: skip
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(set(whole[:6].ravel())) == 30
    assert not np.array_equal(whole[:6], whole[6:12])
    np.testing.assert_array_equal(
        recording.indices(0, 32, 5, 4, 5, fixed=True), whole[4:9]
    )
    with pytest.raises(ValueError, match="`replacement` and `fixed` must not both"):
        recording.indices(0, 32, 5, 0, 1, fixed=True, replacement=True)


def test_with_replacement_some_come_twice():
    drawn = recording.indices(0, 30, 30, 0, 1, replacement=True)
    assert len(set(drawn.ravel())) < 30


def test_a_batch_that_is_too_large():
    with pytest.raises(ValueError, match="must be at most the 30 training images"):
        recording.indices(0, 30, 31, 0, 1)


PLAN = Plan(steps=12, record_every=3, seeds=2, checkpoint_every=6)
DATA = {"x": np.arange(10.0, dtype=np.float32)}
HELD_OUT = {"x": np.array([100.0], np.float32)}


def step(state, batch):
    return {"sum": state["sum"] + batch["x"].sum(), "key": state["key"]}


def record(state, held_out):
    return {"sum": state["sum"], "more": state["sum"] + held_out["x"]}


def run(name="a", step=step, **options):
    return Run(
        name=name,
        init=lambda key: {"sum": jnp.zeros(()), "key": key},
        step=step,
        record=record,
        batch_size=4,
        **options,
    )


def expected(name="sum"):
    indices = [recording.indices(seed, 10, 4, 0, 12) for seed in range(2)]
    sums = np.cumsum(np.sum(DATA["x"][np.stack(indices)], -1), 1)[:, 2::3]
    return sums.T


@pytest.mark.first_case
@pytest.mark.parametrize("convolves", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_records_of_all_runs(tmp_path, convolves, workers):
    runs = [run(name, convolves=convolves) for name in "abc"]
    kept = Folder(tmp_path)
    found = recording.train(runs, PLAN, DATA, HELD_OUT, kept, workers)
    assert list(found) == ["a", "b", "c"]
    for records in found.values():
        np.testing.assert_allclose(records["sum"], expected())
        np.testing.assert_allclose(records["more"], expected()[..., None] + 100)
    kept.clear()
    assert not tmp_path.exists()


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    kept = Folder.of_study(tmp_path, "study", {"rate": 1})
    whole = recording.train([run()], PLAN, DATA, HELD_OUT, Folder(tmp_path / "whole"))

    advance, calls = recording._Training.advance, []

    def stops(self):
        calls.append(self.done)
        if len(calls) == 4:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(recording._Training, "advance", stops)
    with pytest.raises(KeyboardInterrupt):
        recording.train([run()], PLAN, DATA, HELD_OUT, kept)
    resumed = recording.train([run()], PLAN, DATA, HELD_OUT, kept)
    assert calls == [0, 3, 6, 9, 6, 9]  # The checkpoint is that of step 6.
    assert "Resumed at step 6." in capsys.readouterr().out
    chex.assert_trees_all_equal(resumed, whole)
    # One that is done is not trained again; another identity begins anew.
    chex.assert_trees_all_equal(
        recording.train([run()], PLAN, DATA, HELD_OUT, kept), whole
    )
    assert len(calls) == 6
    recording.train(
        [run()], PLAN, DATA, HELD_OUT, Folder.of_study(tmp_path, "study", {"rate": 2})
    )
    assert len(calls) == 10


def test_copies_side_by_side_are_runs_of_their_own(tmp_path):
    def init(key, start):
        return {"sum": start, "key": key}

    starts = jnp.array([0.0, 5.0, -1.0])
    both = recording.side_by_side(run()._replace(init=init), starts)
    kept = Folder(tmp_path)
    found = recording.train([both], PLAN, DATA, HELD_OUT, kept)["a"]
    np.testing.assert_allclose(found["sum"], expected()[..., None] + np.array(starts))
    assert found["more"].shape == (4, 2, 3, 1)


def test_one_trace_for_a_whole_run(tmp_path):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(step, n=1)
    jitted = jax.jit(once)
    kept = Folder(tmp_path)
    recording.train([run(step=jitted)], PLAN, DATA, HELD_OUT, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
        ({"steps": 10}, "`steps` must be a multiple of `record_every`, got 10 and 3"),
        ({"checkpoint_every": 4}, "`checkpoint_every` must be a multiple"),
    ],
)
def test_bad_plans(change, message):
    fields = {"steps": 12, "record_every": 3, "seeds": 2, "checkpoint_every": 6}
    with pytest.raises(ValueError, match=message):
        recording.check(Plan(**(fields | change)))


@pytest.mark.parametrize("convolves", [False, True])
def test_every_epoch_with_the_same_mini_batches(tmp_path, convolves):
    kept = Folder(tmp_path)
    fixed = run(fixed=True, convolves=convolves)
    found = recording.train([fixed], PLAN, DATA, HELD_OUT, kept)["a"]["sum"]
    first = [recording.indices(seed, 10, 4, 0, 2) for seed in range(2)]
    of_epoch = np.array([DATA["x"][rows].sum() for rows in first])
    np.testing.assert_allclose(found[1], 3 * of_epoch)  # 6 steps, 2 to an epoch.
    np.testing.assert_allclose(found[3], 6 * of_epoch)


def test_bad_runs(tmp_path):
    kept = Folder(tmp_path)
    with pytest.raises(ValueError, match="must have different names"):
        recording.train([run(), run()], PLAN, DATA, HELD_OUT, kept)
    few = {"x": DATA["x"][:3]}
    with pytest.raises(ValueError, match="must be at most the 3 training images"):
        recording.train([run()], PLAN, few, HELD_OUT, kept)


def test_a_step_that_descends_a_loss():
    def loss_fn(model, batch, train):
        assert train
        return {"loss": model(batch["x"])[:, 0] ** 2}

    model = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.constant(3.0))
    x = jnp.array([[1.0], [2.0]])
    variables = model.init(jax.random.key(0), x)
    state = training.TrainState.create(model.apply, variables, optax.sgd(0.1))
    state = recording.gradient_step(loss_fn)(state, {"x": x})
    # The loss is w^2 times a mean square of 2.5: 3 - .1 * 2 * 3 * 2.5.
    np.testing.assert_allclose(state.params["kernel"], [[1.5]], rtol=1e-6)
