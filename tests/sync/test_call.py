"""Each way to normalise a call, against Batch Normalization of the parts in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from jaxbn._core import affine, reduction
from jaxbn._core.call import Call
from tests import reference

RNG = np.random.default_rng(0)
WORKERS, EXAMPLES, CHANNELS = 4, 3, 2
X = (RNG.standard_normal((WORKERS * EXAMPLES, 5, CHANNELS)) + 2).astype(np.float32)
DY = RNG.standard_normal(X.shape).astype(np.float32)
SCALE, BIAS = np.array([1.5, -0.5], np.float32), np.array([0.2, 3.0], np.float32)
MASK = RNG.random((len(X), 5, 1)) < 0.7
MEAN, VAR = jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25])


def make_call(x=X, mask=None, examples: int | None = EXAMPLES, **output):
    settings = reduction.Settings((2,))
    out = affine.Output(1e-5, jnp.dtype(jnp.float32), **output)
    mask = None if mask is None else jnp.asarray(mask)
    arrays = (jnp.asarray(array) for array in (x, SCALE, BIAS))
    return Call(settings, out, *arrays, mask, None, MEAN, VAR, examples)


def by_own(call):
    return call.by(lambda own: (own, None))[0]


WAYS = {
    "all": (lambda call: call.by_all()[0], 1),
    "a group of all": (lambda call: call.by_groups(4)[0], 1),
    "groups of two": (lambda call: call.by_groups(2)[0], 2),
    "groups of one": (lambda call: call.by_groups(1)[0], 4),
    "own": (by_own, 4),
}


@pytest.mark.first_case
@pytest.mark.parametrize("mask", [None, MASK], ids=["", "mask"])
@pytest.mark.parametrize("name", WAYS)
def test_values_and_gradients(name, mask):
    normalize, groups = WAYS[name]

    @jax.jit
    def y_and_dx(x, dy):
        y, pull = jax.vjp(lambda x: normalize(make_call(x, mask)), x)
        return y, pull(dy)[0]

    y, dx = y_and_dx(X, DY)
    parts = [
        reference.batch_norm(
            X[rows], SCALE, BIAS, DY[rows], mask=None if mask is None else mask[rows]
        )
        for rows in np.split(np.arange(len(X)), groups)
    ]
    y_right, dx_right = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("y", "dx")
    )
    np.testing.assert_allclose(y, y_right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dx, dx_right, atol=2e-5)


def test_shapes_of_moments():
    call = make_call()
    assert (call.workers, call.axis) == (WORKERS, 0)
    assert call.by_all()[1].mean.shape == (CHANNELS,)
    for size in (1, 2, 4):
        assert call.by_groups(size)[1].mean.shape == (WORKERS // size, CHANNELS)
    _, own = call.by(lambda own: (own, own))
    assert [part.shape for part in own] == [(WORKERS, CHANNELS)] * 4


def test_moments_of_no_examples():
    call = make_call(X.astype(jnp.bfloat16))
    for part in call.no_moments():
        np.testing.assert_array_equal(part, np.zeros(2, np.float32), strict=True)


def test_the_gradient_flows_through_given_statistics():
    def y(mean, var):
        return make_call().by_statistics(mean, var)

    right = (X - np.asarray(MEAN)) / np.sqrt(np.asarray(VAR) + 1e-5) * SCALE + BIAS
    np.testing.assert_allclose(y(MEAN, VAR), right, rtol=1e-5, atol=1e-6)
    dmean, dvar = jax.grad(lambda *stats: jnp.sum(y(*stats) * DY), (0, 1))(MEAN, VAR)
    std, weighted = np.sqrt(np.asarray(VAR) + 1e-5), SCALE * DY
    np.testing.assert_allclose(dmean, -np.sum(weighted, (0, 1)) / std, rtol=1e-4)
    product = np.sum(weighted * (X - np.asarray(MEAN)), (0, 1))
    np.testing.assert_allclose(dvar, -product / (2 * std**3), rtol=1e-4)


def test_no_gradient_reaches_the_running_statistics():
    def loss(mean, var):
        stats = jaxbn.BatchStats(mean, var, sync={"step": jnp.ones((), jnp.int32)})
        policy = jaxbn.sync.FrozenAfter(0)
        return jnp.sum(
            jaxbn.batch_norm_train(X, SCALE, BIAS, stats, sync=policy)[0] * DY
        )

    stats = jnp.asarray(MEAN), jnp.asarray(VAR)
    assert not np.any(jax.grad(loss, (0, 1))(*stats))


def test_channels_without_gradient():
    """Their inputs have no gradient; scale, bias and the other channels keep theirs."""

    def loss(x, scale, first):
        call = make_call(x)._replace(scale=scale)
        return jnp.sum(by_own(call.without_gradient_in(jnp.array([first, False]))) * DY)

    grad = jax.jit(jax.grad(loss, (0, 1)))
    (dx, dscale), (dx_right, dscale_right) = (
        grad(jnp.asarray(X), jnp.asarray(SCALE), first) for first in (True, False)
    )
    assert not np.any(dx[..., 0])
    np.testing.assert_array_equal(dx[..., 1], dx_right[..., 1])
    np.testing.assert_array_equal(dscale, dscale_right)


@pytest.mark.first_case
@pytest.mark.parametrize(
    "normalize",
    [by_own, lambda call: call.by_statistics(MEAN, VAR), WAYS["all"][0]],
    ids=["own", "statistics", "all"],
)
def test_content_outside_the_mask_reaches_nothing(normalize):
    spoiled = np.where(MASK, X, np.nan)

    def loss(x, scale, bias):
        y = normalize(make_call(x, MASK)._replace(scale=scale, bias=bias))
        return jnp.sum(jnp.where(MASK, y * DY, 0))

    grad = jax.jit(jax.grad(loss, (0, 1, 2)))
    made, clean = (grad(jnp.asarray(x), SCALE, BIAS) for x in (spoiled, X))
    for one, other in zip(made, clean, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    outside = np.broadcast_to(~MASK, X.shape)
    y = normalize(make_call(spoiled, MASK))
    np.testing.assert_allclose(y[outside], np.broadcast_to(BIAS, X.shape)[outside])


def test_errors():
    for normalize in (WAYS["groups of one"][0], by_own):
        with pytest.raises(ValueError, match="`sync` needs several workers, got"):
            normalize(make_call(examples=None))
    for size in (0, 3):
        with pytest.raises(ValueError, match=f"divides the 4 workers, got {size}"):
            make_call().by_groups(size)
    with pytest.raises(ValueError, match="`in_place` is for moments of this step"):
        by_own(make_call(in_place=True))
    with pytest.warns(UserWarning, match="one value per channel"):
        make_call(X[:, :1], examples=1).by_groups(1)
