import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxbn
from jaxbn import testing
from jaxbn.core import running


def make_moments(count, mean, var):
    return jaxbn.Moments(*(jnp.full(2, v, jnp.float32) for v in (count, mean, var)))


OLD = jaxbn.BatchStats(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))


class UpdateBatchStatsTest(chex.TestCase):
    @parameterized.product(momentum=(0.0, 0.9, 1.0), unbiased=(True, False))
    def test_formula(self, momentum, unbiased):
        new = running.update_batch_stats(
            OLD, make_moments(5, 7.0, 8.0), momentum=momentum, unbiased=unbiased
        )
        var = 8.0 * 5 / 4 if unbiased else 8.0
        np.testing.assert_allclose(
            new.mean, momentum * np.array([1, 2]) + (1 - momentum) * 7, rtol=1e-6
        )
        np.testing.assert_allclose(
            new.var, momentum * np.array([3, 4]) + (1 - momentum) * var, rtol=1e-6
        )

    @parameterized.parameters(
        (0, 0.0, 0.0),
        (1, 7.0, 0.0),
        (5, np.nan, 1.0),
        (5, 1.0, np.inf),
        (5, -np.inf, np.nan),
    )
    def test_keeps_old_statistics(self, count, mean, var):
        for momentum in (0.0, 0.9, 1.0):
            new = running.update_batch_stats(
                OLD, make_moments(count, mean, var), momentum=momentum
            )
            chex.assert_trees_all_equal(new, OLD)

    def test_each_channel_for_itself(self):
        moments = jaxbn.Moments(
            jnp.array([4.0, 1.0]), jnp.array([5.0, 5.0]), jnp.array([6.0, 0.0])
        )
        new = running.update_batch_stats(OLD, moments, momentum=0.0)
        np.testing.assert_allclose(new.mean, [5.0, 2.0])
        np.testing.assert_allclose(new.var, [8.0, 4.0])

    @hypothesis.given(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            min_size=1,
            max_size=8,  # Each length is compiled.
        )
    )
    @hypothesis.settings(deadline=None)
    def test_no_finite_input_makes_them_non_finite(self, values):
        x = jnp.array(values, jnp.float32)[:, None]
        old = jaxbn.init_batch_stats(1)
        for momentum in (0.0, 0.9):
            new = running.update_batch_stats(
                old, jaxbn.batch_moments(x), momentum=momentum
            )
            testing.assert_valid_batch_stats(new)

    def test_no_gradient(self):
        def total(x):
            new = running.update_batch_stats(OLD, jaxbn.batch_moments(x), momentum=0.9)
            return jnp.sum(new.mean) + jnp.sum(new.var)

        x = jax.random.normal(jax.random.key(0), (8, 2))
        chex.assert_trees_all_equal(jax.grad(total)(x), jnp.zeros_like(x))

    def test_init(self):
        chex.assert_trees_all_equal(
            jaxbn.init_batch_stats((2,)), jaxbn.BatchStats(jnp.zeros(2), jnp.ones(2))
        )
        stats = jaxbn.init_batch_stats(2, jnp.complex64)
        chex.assert_type(stats.mean, jnp.complex64)
        chex.assert_type(stats.var, jnp.float32)
