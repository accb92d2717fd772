"""Gradients beside the exact one, and drift, where they are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import fully_connected
from experiments.sync_policies import reasons, trainings

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
