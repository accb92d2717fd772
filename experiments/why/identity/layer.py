"""Tests a layer whose scale and bias are the deviation and mean of its input."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn

RATIOS = (0.0, 1.0, 1e2, 1e4)
EPSILON = 1e-5
EXAMPLES = 60
_CHANNELS = 100


def errors(ratio: float) -> dict[str, float]:
    """Returns the distance of the layer from the identity.

    Args:
      ratio: the mean of every channel divided by its standard deviation, which is 1.

    Returns:
      For `train` and `inference` the root mean square of the change of the input. For
      `train_gradient` and `inference_gradient` that of the change of a cotangent,
      divided by that of the cotangent.
    """
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, EXAMPLES, _CHANNELS))
    x, dy = jnp.float32(x + ratio), jnp.float32(dy)
    known = np.float64(x)  # The values are rounded to float32.
    stats = jaxbn.BatchStats(jnp.float32(known.mean(0)), jnp.float32(known.var(0)))
    scale, bias = jnp.sqrt(stats.var + EPSILON), stats.mean

    def train(x: jax.Array) -> jax.Array:
        return jaxbn.batch_norm_train(x, scale, bias, stats, epsilon=EPSILON)[0]

    def inference(x: jax.Array) -> jax.Array:
        return jaxbn.batch_norm_inference(x, scale, bias, stats, epsilon=EPSILON)

    found = {}
    for name, layer in (("train", train), ("inference", inference)):
        y, vjp = jax.vjp(layer, x)
        found[name] = _rms(np.float64(y) - known)
        found[f"{name}_gradient"] = _rms(vjp(dy)[0] - dy) / _rms(dy)
    return found


def _rms(values: np.ndarray | jax.Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.float64(values)))))
