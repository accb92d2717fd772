"""A batch over eight devices, and what one device with all of it would give."""

import numpy as np

from tests import reference, styles

ROWS = 4  # Per device.

SCALE, BIAS = np.float32([1, 2, 0.5]), np.float32([0, 1, -1])


def make_masks():
    full = np.ones((styles.DEVICES, ROWS, 1), bool)
    equal = full.copy()
    equal[:, 2:] = False
    uneven = full.copy()
    uneven[0, 1:] = False  # One valid row here, up to four elsewhere.
    uneven[3, :2] = False
    empty = uneven.copy()
    empty[5] = False
    return {
        name: mask.reshape(-1, 1)
        for name, mask in (
            ("none", full),
            ("equal", equal),
            ("uneven", uneven),
            ("empty device", empty),
        )
    }


def make_batch(loc=0.0, channels=3):
    rng = np.random.default_rng(0)
    # Each device has a mean of its own: a mean of means would be wrong.
    shift = np.repeat(np.arange(styles.DEVICES), ROWS)[:, None]
    shape = (styles.DEVICES * ROWS, channels)
    x = (loc + shift + rng.standard_normal(shape)).astype(np.float32)
    return x, rng.standard_normal(shape).astype(np.float32)


def assert_matches(actual, expected, stats, keep, atol=1e-5):
    """1e-5 relative to scale: float32 rounding of sums of 32 values of order 1."""
    keep = np.broadcast_to(keep, actual.y.shape)
    np.testing.assert_allclose(
        np.asarray(actual.y)[keep], expected.y[keep], rtol=1e-5, atol=atol
    )
    np.testing.assert_allclose(actual.dx, expected.dx, rtol=1e-5, atol=atol)
    # Sums over the batch.
    np.testing.assert_allclose(actual.dscale, expected.dscale, atol=10 * atol)
    np.testing.assert_allclose(actual.dbias, expected.dbias, atol=10 * atol)
    mean, var = reference.updated(stats, expected.moments)
    np.testing.assert_allclose(actual.stats.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(actual.stats.var, var, rtol=1e-5)


def grouped_reference(x, mask, dy, groups):
    """Each group, a list of rows, by itself."""
    parts = [
        reference.batch_norm(x[g], SCALE, BIAS, dy[g], mask=mask[g]) for g in groups
    ]
    order = np.argsort(np.concatenate(groups))
    return reference.Result(
        y=np.concatenate([part.y for part in parts])[order],
        moments=reference.moments(x, mask=mask),
        dx=np.concatenate([part.dx for part in parts])[order],
        dscale=sum(part.dscale for part in parts),
        dbias=sum(part.dbias for part in parts),
    )
