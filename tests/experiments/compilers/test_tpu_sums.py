import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.compilers import tpu_sums
from jaxbn._core import variance


def test_the_order():
    """Eight accumulators, each of which rounds after every row."""
    x = np.ones((33, 1), np.float32)
    x[0] = 2**24  # Adding 1 to it changes nothing, and adding 4 does.
    assert tpu_sums.rows_added(jnp.asarray(x), (0,)) == 2**24 + 28
    assert x.sum(dtype=np.float64) == 2**24 + 32


@pytest.mark.parametrize("form", ["checked", "exact", "sliced"])
@pytest.mark.parametrize("loc", [0, 100])
def test_evaluates_every_form(form, loc):
    """With branches of a conditional and functions inside."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(loc + rng.standard_normal((4, 8, 8, 2)), jnp.bfloat16)

    def compute(x):
        count = jnp.full(1, 256, jnp.float32)
        axes, dtype = (0, 1, 2), jnp.dtype(jnp.float32)
        return variance.FORMS[form](axes, dtype, x, None, count)

    actual = tpu_sums.in_order_of_tpu(compute)(x)
    for ours, theirs in zip(actual, jax.jit(compute)(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = np.float64(x).var((0, 1, 2))
    np.testing.assert_allclose(actual[1], expected, rtol=1e-5)


def test_sums_inside_of_a_jitted_function():
    x = jnp.asarray([2.0**24, *[1.0] * 32], jnp.float32)[:, None]
    function = tpu_sums.in_order_of_tpu(jax.jit(lambda x: {"sum": jnp.sum(x, 0)}))
    assert function(x)["sum"] == 2**24 + 28
