"""Filter Response Normalization, against its formula in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbn import variants

RNG = np.random.default_rng(0)
X, DY = RNG.standard_normal((2, 4, 6, 3))
SCALE, BIAS, THRESHOLD, EPSILON = RNG.standard_normal((4, 3))


def formula(x, scale, bias, threshold, epsilon):
    """Equations 1 to 4 of the paper, for `[N, positions, C]`."""
    with jax.numpy_rank_promotion("allow"):
        square = jnp.mean(x**2, 1, keepdims=True) + jnp.abs(epsilon)
        return jnp.maximum(x / jnp.sqrt(square) * scale + bias, threshold)


def ours(x, scale, bias, threshold, epsilon, **options):
    return variants.filter_response_norm(
        x, scale, bias, threshold, epsilon=epsilon, **options
    )


def test_values_and_gradients_are_those_of_the_formula():
    with jax.enable_x64(True):
        args = [jnp.asarray(a) for a in (X, SCALE, BIAS, THRESHOLD, EPSILON)]
        for order in (1, 2):

            def loss(f, *args, order=order):
                value = lambda *given: jnp.sum(jnp.sin(f(*given)) * DY)  # noqa: E731
                grads = jax.grad(value, (0, 1, 2, 3, 4))
                if order == 1:
                    return value(*args), grads(*args)
                return jax.jvp(grads, args, args)

            chex.assert_trees_all_close(
                loss(ours, *args), loss(formula, *args), rtol=1e-9, atol=1e-11
            )


def test_masked_elements_do_not_matter():
    mask = jnp.arange(6)[None, :, None] < 4
    bad = jnp.asarray(X, jnp.float32).at[:, 4:].set(jnp.nan)
    dy = jnp.asarray(DY, jnp.float32).at[:, 4:].set(0)
    params = [jnp.asarray(a, jnp.float32) for a in (SCALE, BIAS, THRESHOLD, EPSILON)]
    y, pull = jax.vjp(lambda *args: ours(*args, mask=mask), bad, *params)
    right, pull_right = jax.vjp(ours, bad[:, :4], *params)
    (dx, *rest), (dx_right, *rest_right) = pull(dy), pull_right(dy[:, :4])
    chex.assert_trees_all_close(y[:, :4], right, rtol=1e-5)
    chex.assert_trees_all_close(dx[:, :4], dx_right, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(rest, rest_right, rtol=1e-4, atol=1e-5)
    chex.assert_tree_all_finite((y, dx))


def test_positions_over_devices():
    args = [jnp.asarray(a, jnp.float32) for a in (X, SCALE, BIAS, THRESHOLD, EPSILON)]
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("d",))

    def loss(x, *params):
        split = jax.shard_map(
            lambda *given: ours(*given, axis_name="d"),
            mesh=mesh,
            in_specs=(jax.P(None, "d"), *[jax.P()] * 4),
            out_specs=jax.P(None, "d"),
        )
        return jnp.sum(jnp.sin(split(x, *params)))

    one = jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(ours(*a))), (0, 1, 2, 3, 4))
    many = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4)))
    chex.assert_trees_all_close(many(*args), one(*args), rtol=1e-4, atol=1e-5)


def test_only_x_is_kept():
    x = jnp.asarray(X, jnp.bfloat16)
    args = [jnp.asarray(a, jnp.float32) for a in (SCALE, BIAS, THRESHOLD)]
    y, pull = jax.vjp(lambda x: ours(x, *args, 1e-6), x)
    large = [leaf for leaf in jax.tree.leaves(pull) if np.size(leaf) == x.size]
    assert [leaf.dtype for leaf in large] == [jnp.bfloat16]
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("learn_epsilon", [False, True])
def test_layers_equal_the_function(learn_epsilon):
    x = jnp.asarray(X, jnp.float32)
    layer = variants.FilterResponseNorm(1e-4, learn_epsilon)
    variables = layer.init(jax.random.key(0), x)
    model = variants.NnxFilterResponseNorm(3, epsilon=1e-4, learn_epsilon=learn_epsilon)
    right = ours(x, None, None, 0.0, 1e-4)
    chex.assert_trees_all_close(layer.apply(variables, x), right, rtol=1e-6)
    chex.assert_trees_all_close(model(x), right, rtol=1e-6)
    assert len(variables["params"]) == 3 + learn_epsilon
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 3 + learn_epsilon


def test_constants_and_zeros_are_finite():
    x = jnp.zeros((2, 5, 3))
    value = lambda x: jnp.sum(variants.filter_response_norm(x, None, None, epsilon=0.0))  # noqa: E731
    chex.assert_tree_all_finite(jax.value_and_grad(value)(x))


def test_errors():
    with pytest.raises(TypeError, match="must be real"):
        variants.filter_response_norm(jnp.ones((2, 3), jnp.complex64), None, None)
    with pytest.raises(ValueError, match="`scale`"):
        variants.filter_response_norm(jnp.ones((2, 3)), jnp.ones(2), None)
    with pytest.raises(ValueError, match="axis of examples"):
        variants.filter_response_norm(jnp.ones(3), None, None)
