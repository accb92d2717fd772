"""The op on random batches, and autodiff of the textbook formula beside it."""

import jax.numpy as jnp
import numpy as np

import jaxbn


def make_batch(shape=(16, 3), axis=-1, seed=0, loc=1.0):
    rng = np.random.default_rng(seed)
    features = tuple(shape[a] for a in np.atleast_1d(axis))
    x, scale, bias, dy = (
        rng.standard_normal(size).astype(np.float32)
        for size in (shape, features, features, shape)
    )
    return np.float32(loc) + 2 * x, 1 + 0.3 * scale, bias, dy


def train(x, scale, bias, **options):
    channels = np.shape(scale)
    dtype = jnp.complex64 if jnp.iscomplexobj(x) else jnp.float32
    stats = jaxbn.init_batch_stats(channels, dtype)
    return jaxbn.batch_norm_train(x, scale, bias, stats, **options)[0]


def plain(x, scale, bias, epsilon=1e-5):
    """Autodiff of the textbook formula, channels last."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, keepdims=True)
    var = jnp.mean(jnp.abs(x - mean) ** 2, axes, keepdims=True)
    x_hat = (x - mean) / jnp.sqrt(var + epsilon)
    return x_hat * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes)
