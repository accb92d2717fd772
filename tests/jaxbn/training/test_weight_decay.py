import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbn import training
from tests.small_net import make_state


class WeightDecayTest(chex.TestCase):
    def test_leaves_out_scale_and_bias(self):
        tx = optax.chain(
            optax.add_decayed_weights(0.5, mask=training.weight_decay_mask),
            optax.sgd(1.0),
        )
        state = make_state(tx=tx)
        params = jax.tree.map(jnp.ones_like, state.params)
        updates, _ = tx.update(
            jax.tree.map(jnp.zeros_like, params), tx.init(params), params
        )
        for layer in updates.values():
            for name, update in layer.items():
                expected = -0.5 if name == "kernel" else 0.0
                np.testing.assert_array_equal(update, expected)

    def test_partitioned_params(self):
        boxed = nn.Partitioned(jnp.ones(3), names=("model",))
        mask = training.weight_decay_mask({"bn": {"scale": boxed}, "kernel": boxed})
        assert jax.tree.leaves(mask) == [False, True]
        assert training.weight_decay_mask(jnp.ones(3)) is True
