import chex
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from tests import reference
from tests.reference import assert_moments_close


def batches(count):
    """Data sets of 1 to 12 rows whose mean may be far from 0."""
    rows = hypothesis.extra.numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.just(2)),
        elements=st.floats(-100, 100, width=32),
    )
    loc = st.sampled_from([0.0, 1e3])
    return st.lists(rows, min_size=count, max_size=count), loc


class MergeMomentsTest(chex.TestCase):
    @hypothesis.given(*batches(3), st.permutations([0, 1, 2]))
    @hypothesis.settings(deadline=None, max_examples=50)
    def test_any_split_and_order_gives_the_moments_of_the_whole(
        self, parts, loc, order
    ):
        parts = [part + np.float32(loc) for part in parts]
        a, b, c = (jaxbn.batch_moments(parts[i]) for i in order)
        left = jaxbn.merge_moments(jaxbn.merge_moments(a, b), c)
        right = jaxbn.merge_moments(a, jaxbn.merge_moments(b, c))
        expected = reference.moments(np.concatenate(parts))
        for actual in (left, right):
            # A float32 sum of squares about a mean of another part.
            assert_moments_close(actual, expected, rtol=1e-4, atol=1e-3)

    def test_halves_at_a_large_mean(self):
        # With means of one float the variance is wrong by 3.8e-4.
        x = (1e4 + np.random.default_rng(0).standard_normal((16, 256))).astype("f4")
        merged = jaxbn.merge_moments(*map(jaxbn.batch_moments, np.split(x, 2)))
        np.testing.assert_allclose(merged.var, reference.moments(x).var, rtol=1e-6)

    def test_moments_without_a_second_float(self):
        a, b = (jaxbn.Moments(*np.float32([[2], [m], [1]])) for m in (1, 3))
        merged = jaxbn.merge_moments(a, b)
        np.testing.assert_array_equal([*merged[:3]], [[4], [2], [2]])

    def test_no_kernel_but_elementwise_ones(self):
        moments = jaxbn.Moments(*jnp.ones((4, 3)))
        program = jax.jit(jaxbn.merge_moments).lower(moments, moments).as_text()
        # Each of the others would be a kernel of its own on a TPU.
        assert "multiply" in program
        for op in ("reduce", "concatenate", "pad"):
            assert f"stablehlo.{op}" not in program

    def test_empty_is_neutral(self):
        a = jaxbn.batch_moments(jnp.array([[1.0], [4.0]]))
        empty = jaxbn.batch_moments(jnp.ones((0, 1)))
        chex.assert_trees_all_equal(jaxbn.merge_moments(a, empty), a)
        chex.assert_trees_all_equal(jaxbn.merge_moments(empty, a), a)
        chex.assert_trees_all_equal(jaxbn.merge_moments(empty, empty), empty)
