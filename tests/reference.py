"""Batch Normalization in float64 NumPy, straight from the paper's formulas."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    count: np.ndarray
    mean: np.ndarray
    var: np.ndarray


class Result(NamedTuple):
    y: np.ndarray
    moments: Moments
    dx: np.ndarray
    dscale: np.ndarray
    dbias: np.ndarray


def reduced_axes(ndim, axis):
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(a for a in range(ndim) if a not in {b % ndim for b in axes})


def moments(x, *, axis=-1, mask=None):
    """Returns the moments of the elements that the mask keeps, or zeros without any."""
    x = np.asarray(x, np.float64)
    axes = reduced_axes(x.ndim, axis)
    valid = np.broadcast_to(True if mask is None else mask, x.shape)
    count = valid.sum(axes)
    m = np.maximum(valid.sum(axes, keepdims=True), 1)
    mean = np.where(valid, x, 0).sum(axes, keepdims=True) / m
    var = (np.where(valid, x - mean, 0) ** 2).sum(axes) / m.squeeze(axes)
    return Moments(count, mean.squeeze(axes), var)


def batch_norm(x, scale, bias, dy, *, axis=-1, mask=None, epsilon=1e-5):
    """Forward and the paper's six backward formulas (Section 3).

    Elements outside the mask are normalised but do not count for the moments; those
    that are not finite give the bias.
    """
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    axes = reduced_axes(x.ndim, axis)

    def expand(array):
        return np.expand_dims(np.asarray(array, np.float64), axes)

    valid = np.broadcast_to(True if mask is None else mask, x.shape)
    usable = valid | np.isfinite(x)
    stats = moments(x, axis=axis, mask=mask)
    m = np.maximum(expand(stats.count), 1)
    std = np.sqrt(expand(stats.var) + epsilon)
    centered = np.where(usable, x - expand(stats.mean), 0)
    x_hat = centered / std

    dx_hat = np.where(usable, dy * expand(scale), 0)
    dvar = (dx_hat * centered * -0.5 * std**-3).sum(axes, keepdims=True)
    sum_centered = np.where(valid, centered, 0).sum(axes, keepdims=True)
    dmean = (-dx_hat / std).sum(axes, keepdims=True) - 2 * dvar * sum_centered / m
    dx = dx_hat / std + np.where(valid, dvar * 2 * centered / m + dmean / m, 0)
    return Result(
        y=x_hat * expand(scale) + expand(bias),
        moments=stats,
        dx=dx,
        dscale=(dy * x_hat).sum(axes),
        dbias=dy.sum(axes),
    )


def updated(batch_stats, moments, *, momentum=0.99, unbiased=True):
    """Running statistics after one batch with at least two values per channel."""
    factor = moments.count / (moments.count - 1) if unbiased else 1.0
    return (
        momentum * np.asarray(batch_stats.mean) + (1 - momentum) * moments.mean,
        momentum * np.asarray(batch_stats.var) + (1 - momentum) * moments.var * factor,
    )


def assert_moments_close(actual, expected, rtol=1e-4, atol=1e-6):
    """The design's bound; measured about 2e-7 where the data are well conditioned."""
    std = np.sqrt(expected.var)
    np.testing.assert_array_equal(actual.count, expected.count)
    # One rounding of the mean to float32, plus that of its sum in units of std.
    slack = 3e-7 * np.abs(expected.mean) + rtol * std + atol
    assert np.all(np.abs(np.asarray(actual.mean) - expected.mean) <= slack)
    np.testing.assert_allclose(actual.var, expected.var, rtol=rtol, atol=atol**2)
