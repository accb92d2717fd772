"""Merged parameters against the two maps one after the other, in float64."""

import numpy as np
import pytest

from jaxbn.folding import merging
from jaxbn.folding.kernels import Place
from jaxbn.folding.linear import Following, Preceding

RNG = np.random.default_rng(0)
KERNEL, BIAS = 0, 1


@pytest.mark.parametrize("has_bias", [True, False])
def test_into_the_layer_before(has_bias):
    x = RNG.standard_normal((5, 3))
    kernel, bias = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((2, 4))
    affine = merging.Affine(
        *RNG.standard_normal((2, 4, 2))
    )  # Axes the other way round.
    found = Preceding(Place(KERNEL, (2, 0)), Place(BIAS, (1, 0)) if has_bias else None)
    changed, left = merging.into_preceding(found, affine, {KERNEL: kernel, BIAS: bias})

    def layer(kernel, bias):
        return np.einsum("ni,aib->nba", x, kernel) + bias.T

    y = layer(kernel, bias if has_bias else 0 * bias)
    actual = layer(changed[KERNEL], changed.get(BIAS, 0 * bias))
    actual = actual if left.shift is None else actual + left.shift
    assert left.scale is None
    assert (left.shift is None) == has_bias
    np.testing.assert_allclose(actual, affine.scale * y + affine.shift, rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
def test_into_the_layer_after(groups):
    channels, outputs = 6, 9
    x = RNG.standard_normal((5, channels))
    kernel = RNG.standard_normal((outputs, channels // groups))
    affine = merging.Affine(*RNG.standard_normal((2, channels)))
    found = Following(Place(KERNEL, (1,)), groups, (0,), None, None, False)
    changed, moved = merging.into_following(found, affine, {KERNEL: kernel})

    def layer(x, kernel):
        parts = zip(np.split(x, groups, 1), np.split(kernel, groups, 0), strict=True)
        return np.concatenate([part @ own.T for part, own in parts], 1)

    np.testing.assert_allclose(
        layer(x, changed[KERNEL]) + moved,
        layer(affine.scale * x + affine.shift, kernel),
        rtol=1e-11,
    )


def test_outputs_in_another_order_than_in_the_kernel():
    x, kernel = RNG.standard_normal((5, 3)), RNG.standard_normal((2, 3, 4))
    affine = merging.Affine(*RNG.standard_normal((2, 3)))
    found = Following(Place(KERNEL, (1,)), 1, (2, 0), None, None, False)
    changed, moved = merging.into_following(found, affine, {KERNEL: kernel})

    def layer(x, kernel):
        return np.einsum("ni,aib->nba", x, kernel)

    np.testing.assert_allclose(
        layer(x, changed[KERNEL]) + moved,
        layer(affine.scale * x + affine.shift, kernel),
        rtol=1e-11,
    )
