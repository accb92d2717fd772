import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.library.sync_policies import parts, reasons, report, study, trainings
from experiments.networks import fully_connected, policies
from jaxbn import sync


def test_every_name():
    made = {name: trainings.by_name(name, 8, 100) for name in trainings.NAMES}
    assert made["exact"] == policies.Exact()
    assert made["groups of half"] == policies.Group(4)
    assert made["frozen after half"] == sync.FrozenAfter(50)
    assert made["stale, forward"] == sync.Stale(0.8, backward=False)
    assert len(set(made.values())) == len(trainings.NAMES)


@pytest.mark.parametrize("memory", [0.0, 0.95])
def test_memories(memory):
    both, forward = (
        trainings.by_name(f"stale, a = {memory}{suffix}", 8, 100)
        for suffix in ("", ", forward")
    )
    assert both == sync.Stale(memory)
    assert forward == sync.Stale(memory, backward=False)


RNG = np.random.default_rng(0)
RECIPE = trainings.Recipe(
    make_model=functools.partial(fully_connected.FullyConnected, (6, 5), "relu"),
    shape=(4,),
    steps=200,
    rate=0.1,
    momentum=0.9,
    running=0.9,
)
SETTING = trainings.Setting(2, 3)
PROBES = {
    "probe_image": RNG.standard_normal((2, 3, 2, 4)).astype(np.float32),
    "probe_label": RNG.integers(0, 10, (2, 3, 2)),
}
TEST = {"image": np.ones((1, 4), np.float32), "label": np.zeros(1, int)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("policy", ["exact", "local"])
def test_beside_the_exact_gradient(policy):
    compared = jax.jit(reasons.beside_exact(RECIPE, SETTING))
    state = trainings.init_state(RECIPE, SETTING, policy, jax.random.key(0), 0.1)
    made = compared(state, PROBES)
    assert made["cosine"].shape == made["length"].shape == (2,)
    if policy == "exact":
        np.testing.assert_allclose(made["cosine"], 1, rtol=1e-5)
        np.testing.assert_allclose(made["length"], 1, rtol=1e-5)
    else:
        assert np.all(made["cosine"] < 0.999)
        assert np.all(made["cosine"] > 0)


@pytest.mark.exhaustive
def test_drift_is_that_of_the_weights_so_many_steps_before():
    run = trainings.run(RECIPE, SETTING, "exact")
    drifting = reasons.drifting(run, RECIPE, every=65)
    step = jax.jit(drifting.step)
    carried = drifting.init(jax.random.key(0))
    params = []
    for _ in range(65):
        params.append(carried[0].params)
        batch = {
            "image": jnp.asarray(RNG.standard_normal((3, 2, 4)), jnp.float32),
            "label": jnp.asarray(RNG.integers(0, 10, (3, 2))),
        }
        carried = step(carried, batch)
    drift = drifting.record(carried, {**PROBES, **TEST})["drift"]
    image = PROBES["probe_image"].reshape(-1, 4)
    now = image @ np.asarray(carried[0].params["Dense_0"]["kernel"])
    for row, lag in zip(drift, reasons.LAGS, strict=True):
        before = image @ np.asarray(params[-lag]["Dense_0"]["kernel"])
        distance = (now.mean(0) - before.mean(0)) / now.std(0)
        np.testing.assert_allclose(row[0], np.sqrt(np.mean(distance**2)), rtol=1e-3)


def records(ends):
    """Two records of two seeds."""
    return {"accuracy": [[0.1, 0.1], [ends, ends + 0.002]]}


def result(**of_stale):
    ends = {"exact": 0.9, "local": 0.6, "stale, forward": 0.85, "stale": 0.898}
    by_label = {**ends, "local": 0.3, "stale": 0.895}
    made = {}
    for part, usual in (("examples", ends), ("sorted", by_label)):
        suffix = ", sorted" * (part == "sorted")
        made[part] = {
            f"8 x {examples}{suffix}": {
                name: records(of_stale.get(f"{part}_{examples}", end)
                              if name == "stale" else end)
                for name, end in usual.items()
            }
            for examples in (2, 4)
        }  # fmt: skip
    options = {"examples": [2, 4], "usual": 2, "workers": 8}
    return {"options": options, "parts": made, "steps": [10, 20]}


def test_all_holds():
    assert report.verdict(result()) == "holds"
    text = report.table(result())
    assert "| stale | 0.8990 ± 0.0010 | 0.8990 ± 0.0010 |" in text
    assert "Shards sorted by label" in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"examples_4": 0.894}, "stale ones lose at most half a point"),
        ({"sorted_4": 0.889}, "and at most a point on sorted shards"),
        ({"examples_2": 0.84}, "without the backward term they learn more slowly"),
    ],
)
def test_each_target_can_be_missed(changed, words):
    found = report.statements(result(**changed))
    assert {name for name, held in found.items() if not held} >= {
        name for name in found if name.startswith(words)
    }
    assert report.verdict(result(**changed)) == "holds partly"


def test_a_training_that_diverged_has_nothing_right():
    made = result()
    made["parts"]["examples"]["8 x 2"]["local"]["accuracy"][-1] = [None, None]
    lost = report._lost(made, "examples", 2)
    np.testing.assert_allclose(lost["local"], 0.901)


LABELS = np.random.default_rng(1).integers(0, 4, size=83)
DATA = {"image": np.arange(83.0)[:, None], "label": LABELS}


@pytest.mark.parametrize("by_label", [False, True])
def test_every_example_is_in_one_shard(by_label):
    made = trainings.split(DATA, 8, by_label)
    assert made["image"].shape == (10, 8, 1)
    assert made["label"].shape == (10, 8)
    used = made["image"].ravel().astype(int)
    assert len(set(used)) == 80
    np.testing.assert_array_equal(made["label"].ravel(), LABELS[used])


def test_sorted_by_label():
    labels = trainings.split(DATA, 8, True)["label"]
    assert np.all(labels[:, 1:].min(0) >= labels[:, :-1].max(0))
    assert max(len(set(column)) for column in labels.T) == 2
    shuffled = trainings.split(DATA, 8, False)["label"]
    assert min(len(set(column)) for column in shuffled.T) > 2


def test_a_batch_has_worker_after_worker():
    made = trainings.split(DATA, 8, True)
    batch = trainings.as_batch({name: array[:3] for name, array in made.items()})
    np.testing.assert_array_equal(
        batch["image"].reshape(8, 3), made["image"][:3, :, 0].T
    )


def test_too_many_workers():
    with pytest.raises(ValueError, match="an example for each of 84 workers"):
        trainings.split(DATA, 84, True)


@pytest.mark.exhaustive
def test_a_residual_network():
    config = study.SyncPolicies(
        network="residual", channels=2, tables=("examples", "sorted")
    )
    config.check()
    part = next(p for p in parts.parts(config, (4, 4, 1)) if p.setting.examples == 2)
    run = part.runs["stale"]
    assert run.convolves
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(size=(2, 8, 4, 4, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, (2, 8))),
    }
    state = run.init(jax.random.key(0))
    new = jax.jit(run.step)(state, batch)
    assert int(new.step) == 1
    sent = sync.messages_of(new.batch_sync)
    counts = [leaf for name, leaf in sent.items() if name.endswith("count")]
    assert len(counts) == 5
    assert all(np.all(count > 0) for count in counts)
    test = {"image": batch["image"][:, 0], "label": batch["label"][:, 0]}
    assert 0 <= run.record(new, test)["accuracy"] <= 1


def test_every_table_has_its_trainings():
    made = parts.parts(study.SyncPolicies(), (4,))
    names = [run.name for part in made for run in part.runs.values()]
    assert len(set(names)) == len(names)
    assert {part.name for part in made} == set(study._TABLES)
    alone = next(part for part in made if part.setting.name == "8 x 1")
    assert "local" not in alone.runs
    assert "stale" in alone.runs
