import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from jaxbn.core import local, moments, reduction
from tests import reference
from tests.reference import assert_moments_close


def test_masked_nan_has_no_derivative():
    x = jnp.arange(8.0).reshape(4, 2).at[3].set(jnp.nan)
    mask = np.arange(4)[:, None] < 3

    def var(x):
        how = reduction.Reduction((1,), "two_pass")
        return jnp.sum(local.local_moments(how, x, mask).var)

    gradient = jax.jit(jax.grad(var))(x)
    np.testing.assert_array_equal(gradient[3], 0)
    np.testing.assert_allclose(gradient[:3], [[-4 / 3] * 2, [0] * 2, [4 / 3] * 2])


class BatchMomentsTest(chex.TestCase):
    def test_fast_variance_cancels_and_the_default_does_not(self):
        x = (1e4 + jax.random.normal(jax.random.key(0), (4096, 1))).astype(jnp.float32)
        fast = local.local_moments(reduction.Reduction((1,), "fast"), x, None)
        stable = local.local_moments(reduction.Reduction((1,)), x, None)
        assert abs(float(fast.var[0]) - 1) > 0.5
        assert abs(float(stable.var[0]) - 1) < 0.1

    @parameterized.parameters(0.0, 1e2, 1e4)
    def test_two_passes_are_accurate_without_a_branch(self, loc):
        x = loc + np.random.default_rng(0).standard_normal((4096, 3))
        x = x.astype(np.float32)
        mask = np.arange(4096)[:, None] < 3000
        for m in (None, mask):
            how = reduction.Reduction((1,), "two_pass")
            actual = moments.count_per_channel(local.local_moments(how, x, m))
            assert_moments_close(actual, reference.moments(x, mask=m))
