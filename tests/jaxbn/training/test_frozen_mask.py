"""Frozen parameters under weight decay and momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxbn.nnx import BatchNorm
from jaxbn.training import frozen_mask

PARAMS = {
    "encoder": {"bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
    "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
}
STATS = {
    "encoder": {"bn": {"mean": jnp.zeros(2), "var": jnp.ones(2)}},
    "bn": {"mean": jnp.zeros(2), "var": jnp.ones(2)},
}


def optimiser(mask):
    tx = optax.adamw(0.1, weight_decay=0.1)
    return optax.chain(tx, optax.masked(optax.set_to_zero(), mask))


def test_what_is_frozen_stays_under_weight_decay():
    tx = optimiser(frozen_mask(STATS, "encoder", bias=False))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    new = optax.apply_updates(PARAMS, updates)
    stayed = jax.tree.map(lambda old, now: bool(jnp.all(old == now)), PARAMS, new)
    assert stayed.pop("encoder") == {"bn": {"scale": True, "bias": False}}
    assert not any(jax.tree.leaves(stayed))


def test_an_nnx_model():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), BatchNorm(4, rngs=rngs))
    mask = frozen_mask(nnx.state(model, nnx.BatchStat))
    optimizer = nnx.Optimizer(model, optimiser(mask), wrt=nnx.Param)
    before = nnx.clone(model)
    gradients = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    optimizer.update(model, gradients)
    for name in ("scale", "bias"):
        old, new = (getattr(each.layers[1], name)[...] for each in (before, model))
        np.testing.assert_array_equal(old, new)
    assert not jnp.any(before.layers[0].kernel[...] == model.layers[0].kernel[...])


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"got 'decoder'; the layers .* 'encoder/bn'"):
        frozen_mask(STATS, "decoder")
