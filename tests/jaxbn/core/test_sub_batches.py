import chex
import jax
import numpy as np
import pytest

import jaxbn
from tests import styles
from tests.whole_batch import (
    BIAS,
    ROWS,
    SCALE,
    assert_matches,
    grouped_reference,
    make_batch,
    make_masks,
)


@pytest.mark.parametrize("size", [4, 8, 16, "local"])
@pytest.mark.parametrize("style", ["single device", *styles.JIT])
def test_parts_of_a_batch(style, size):
    x, dy = make_batch()
    stats = jaxbn.init_batch_stats(3)
    masks = [make_masks()[name] for name in ("none", "empty device")]
    if style == "jit Explicit" and size in (8, 16):
        with pytest.raises(ValueError, match="span the 8 shards of 32 examples"):
            styles.run(style, x, masks[0], dy, SCALE, BIAS, stats, group_size=size)
        return
    if style == "single device" and size == "local":
        return  # Not known; see below.
    for mask in masks:
        dy = np.where(mask, dy, 0).astype(np.float32)
        actual = styles.run(style, x, mask, dy, SCALE, BIAS, stats, group_size=size)
        rows = ROWS if size == "local" else size
        groups = list(np.arange(len(x)).reshape(-1, rows))
        expected = grouped_reference(x, mask, dy, groups)
        assert_matches(actual, expected, stats, mask)


def test_parts_of_a_batch_on_an_explicit_mesh():
    x, _ = make_batch(channels=4)
    stats = jaxbn.init_batch_stats(4)

    @jax.jit
    def train(x):
        return jaxbn.batch_norm_train(x, None, None, stats, group_size=4)

    mesh = jax.make_mesh((4, 2), ("data", "model"))
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "model")))
    chex.assert_trees_all_close(train(split), train(x), rtol=1e-5, atol=1e-6)


class GroupTest(chex.TestCase):
    def test_channels_first(self):
        x, _ = make_batch()
        stats = jaxbn.init_batch_stats(3)
        last, first = (
            jaxbn.batch_norm_train(a, SCALE, BIAS, stats, axis=axis, group_size=8)
            for a, axis in ((x, -1), (x.T, 0))
        )
        np.testing.assert_allclose(first[0].T, last[0], atol=1e-6)
        chex.assert_trees_all_close(first[1], last[1], rtol=1e-6)

    def test_parts_of_an_empty_batch(self):
        stats = jaxbn.init_batch_stats(3)
        x = np.ones((0, 3), np.float32)
        y, new = jaxbn.batch_norm_train(x, None, None, stats, group_size=2)
        assert y.shape == (0, 3)
        chex.assert_trees_all_equal(new, stats)
