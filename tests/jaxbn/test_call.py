"""Each way to normalise a call, against Batch Normalization of the parts in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.call import Call
from jaxbn.core import affine, reduction, running
from tests import reference

RNG = np.random.default_rng(0)
WORKERS, EXAMPLES, CHANNELS = 4, 3, 2
X = (RNG.standard_normal((WORKERS * EXAMPLES, 5, CHANNELS)) + 2).astype(np.float32)
DY = RNG.standard_normal(X.shape).astype(np.float32)
SCALE, BIAS = np.array([1.5, -0.5], np.float32), np.array([0.2, 3.0], np.float32)
MASK = RNG.random((len(X), 5, 1)) < 0.7
STATS = running.BatchStats(jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25]))


def call(x=X, mask=None, examples: int | None = EXAMPLES, **output):
    how = reduction.Reduction((2,))
    out = affine.Output(1e-5, jnp.dtype(jnp.float32), **output)
    mask = None if mask is None else jnp.asarray(mask)
    arrays = (jnp.asarray(array) for array in (x, SCALE, BIAS))
    return Call(how, out, *arrays, mask, None, STATS, examples)


def expected(groups, mask=None):
    """Returns y and dx of the groups, each normalised by itself."""
    rows = np.split(np.arange(len(X)), groups)
    made = [
        reference.batch_norm(
            X[r], SCALE, BIAS, DY[r], mask=None if mask is None else mask[r]
        )
        for r in rows
    ]
    return (np.concatenate([getattr(m, name) for m in made]) for name in ("y", "dx"))


def check(function, groups, mask=None):
    y, pull = jax.vjp(lambda x: function(call(x, mask)), jnp.asarray(X))
    y_expected, dx_expected = expected(groups, mask)
    np.testing.assert_allclose(y, y_expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.asarray(DY))[0], dx_expected, atol=2e-5)


@pytest.mark.parametrize("mask", [None, MASK], ids=["", "mask"])
def test_by_all_and_by_groups(mask):
    check(lambda c: c.by_all()[0], 1, mask)
    check(lambda c: c.by_groups(4)[0], 1, mask)
    check(lambda c: c.by_groups(2)[0], 2, mask)
    check(lambda c: c.by_groups(1)[0], 4, mask)
    check(lambda c: c.normalized()[0], 4, mask)


@pytest.mark.parametrize("mask", [None, MASK], ids=["", "mask"])
def test_by_a_function_of_ones_own_moments(mask):
    check(lambda c: c.by(lambda mine: mine), 4, mask)


def test_shapes_of_moments():
    assert call().by_all()[1].mean.shape == (CHANNELS,)
    assert call().by_groups(1)[1].mean.shape == (WORKERS, CHANNELS)
    assert call().by_groups(2)[1].mean.shape == (WORKERS // 2, CHANNELS)
    assert call().by_groups(4)[1].mean.shape == (1, CHANNELS)
    seen = []
    call().by(lambda mine: seen.append(mine) or mine)
    assert [part.shape for part in seen[0]] == [(WORKERS, CHANNELS)] * 4


def test_given_statistics_have_no_gradient():
    y = call().by_statistics(*STATS)
    std = np.sqrt(np.asarray(STATS.var) + 1e-5)
    np.testing.assert_allclose(
        y, (X - np.asarray(STATS.mean)) / std * SCALE + BIAS, rtol=1e-5, atol=1e-6
    )
    grads = jax.grad(lambda stats: jnp.sum(call().by_statistics(*stats)))(STATS)
    assert not np.any(grads.mean)
    assert not np.any(grads.var)


def test_channels_that_are_held_still():
    """Their inputs have no gradient; scale, bias and the other channels keep theirs."""

    def loss(x, scale, still):
        held = call(x)._replace(scale=scale).holding(jnp.array([still, False]))
        return jnp.sum(held.by(lambda mine: mine) * DY)

    grad = jax.grad(loss, (0, 1))
    held, free = (grad(jnp.asarray(X), jnp.asarray(SCALE), s) for s in (True, False))
    assert not np.any(held[0][..., 0])
    np.testing.assert_array_equal(held[0][..., 1], free[0][..., 1])
    np.testing.assert_array_equal(held[1], free[1])


@pytest.mark.parametrize(
    "way",
    [
        lambda c: c.by(lambda mine: mine),
        lambda c: c.by_statistics(*STATS),
        lambda c: c.by_all()[0],
    ],
    ids=["function", "statistics", "all"],
)
def test_what_is_outside_the_mask_reaches_nothing(way):
    spoiled = np.where(MASK, X, np.nan)

    def loss(x, scale, bias):
        y = way(call(x, MASK)._replace(scale=scale, bias=bias))
        return jnp.sum(jnp.where(MASK, y * DY, 0))

    grad = jax.grad(loss, (0, 1, 2))
    made, clean = (grad(jnp.asarray(x), SCALE, BIAS) for x in (spoiled, X))
    for one, other in zip(made, clean, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    y = way(call(spoiled, MASK))
    outside = np.broadcast_to(~MASK, X.shape)
    np.testing.assert_allclose(y[outside], np.broadcast_to(BIAS, X.shape)[outside])


def test_the_first_examples_of_every_worker():
    for fraction, number in ((1.0, 3), (0.5, 2), (0.1, 1)):
        made = call().counting(fraction)
        assert made.mask is not None
        counts = np.arange(len(X)) % EXAMPLES < number
        np.testing.assert_array_equal(made.mask[:, 0, 0], counts)
    both = call(mask=MASK).counting(0.5).mask
    counts = np.arange(len(X)) % EXAMPLES < 2
    np.testing.assert_array_equal(both, MASK & counts[:, None, None])


def test_errors():
    for way in (lambda c: c.by_groups(1), lambda c: c.by(lambda mine: mine)):
        with pytest.raises(ValueError, match="`sync` tells workers apart"):
            way(call(examples=None))
    with pytest.raises(ValueError, match="a size that divides the 4 workers, got 3"):
        call().by_groups(3)
    with pytest.raises(ValueError, match="`in_place` is for moments of this step"):
        call(in_place=True).by(lambda mine: mine)
    with pytest.warns(UserWarning, match="one value per channel"):
        call(X[:, :1], examples=1).by_groups(1)
