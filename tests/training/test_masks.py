"""Parameters without weight decay, and frozen ones under decay and momentum."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxbn import training
from tests.training.both_apis import APIS, BATCH, Linen, Nnx, loss_fn

STATS = {
    "encoder": {"bn": {"mean": jnp.zeros(2), "var": jnp.ones(2)}},
    "bn": {"mean": jnp.zeros(2), "var": jnp.ones(2)},
}
PARAMS = {
    "encoder": {"bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
    "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
}


@APIS
def test_weight_decay_leaves_out_scale_and_bias(api):
    decay = optax.add_decayed_weights(0.5, mask=training.weight_decay_mask)
    made = api(optax.chain(optax.set_to_zero(), decay, optax.sgd(1.0)))
    before = made.params
    made.take(api.train(loss_fn), BATCH)
    for layer, params in made.params.items():
        for name, new in params.items():
            factor = 0.5 if name == "kernel" else 1.0
            np.testing.assert_array_equal(new, factor * before[layer][name])


def test_partitioned_params():
    boxed = nn.Partitioned(jnp.ones(3), names=("model",))
    mask = training.weight_decay_mask({"bn": {"scale": boxed}, "kernel": boxed})
    assert jax.tree.leaves(mask) == [False, True]
    assert training.weight_decay_mask(jnp.ones(3)) is True


def optimiser(mask):
    tx = optax.adamw(0.1, weight_decay=0.1)
    return optax.chain(tx, optax.masked(optax.set_to_zero(), mask))


@pytest.mark.first_case
@APIS
def test_what_is_frozen_stays_under_weight_decay(api):
    stats = {
        Linen: lambda: api().state.batch_stats,
        Nnx: lambda: nnx.state(api().model, nnx.BatchStat),
    }
    made = api(optimiser(training.frozen_mask(stats[api](), "norm", bias=False)))
    before = made.params
    made.take(api.train(loss_fn), BATCH)
    for layer, params in made.params.items():
        for name, new in params.items():
            stays = np.all(new == before[layer][name])
            assert stays == ((layer, name) == ("norm", "scale"))


def test_only_the_layers_that_are_meant():
    mask = training.frozen_mask(STATS, "encoder")(PARAMS)
    assert mask["encoder"]["bn"] == {"scale": True, "bias": True}
    assert not any(jax.tree.leaves({**mask, "encoder": {}}))


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"got 'decoder'; the layers .* 'encoder/bn'"):
        training.frozen_mask(STATS, "decoder")


def test_parameters_of_another_model():
    with pytest.raises(ValueError, match="must hold a scale or a bias of the layers"):
        training.frozen_mask(STATS)({"dense": PARAMS["dense"]})
