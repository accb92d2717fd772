"""The paper's example: one unit whose bias is trained although it has no effect.

Inputs `u` are standard normal, and targets are `u / 2 + 1`. The unit `scale * u + bias`
is normalised, and the loss is half the mean squared error.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.outside_gradient import layers

_EXAMPLES = 60


def train(variant: str, learning_rate: float, steps: int) -> dict[str, np.ndarray]:
    """Returns `bias`, `scale` and `loss` of a training, `[steps + 1]` each.

    The values are those before each step and after the last. If the variant does not
    divide by the deviation, only the bias is trained, as in the paper.
    """
    scales, inside = layers.VARIANTS[variant]
    u = inputs()
    target = u / 2 + 1

    def loss(unit: tuple[jax.Array, jax.Array]) -> jax.Array:
        scale, bias = unit
        x = layers.normalise((scale * u + bias)[:, None], scales, inside)[:, 0]
        return jnp.mean(jnp.square(x - target)) / 2

    def step(unit: tuple[jax.Array, jax.Array], _: None):
        value, (by_scale, by_bias) = jax.value_and_grad(loss)(unit)
        scale, bias = unit
        rate = learning_rate if scales else 0.0
        moved = (scale - rate * by_scale, bias - learning_rate * by_bias)
        return moved, (*unit, value)

    start = (jnp.float32(1), jnp.float32(0))
    last, found = jax.jit(lambda s: jax.lax.scan(step, s, length=steps))(start)
    last = (*last, loss(last))
    return {
        name: np.append(values, end)
        for name, values, end in zip(
            ("scale", "bias", "loss"), found, last, strict=True
        )
    }


def inputs() -> jax.Array:
    """Returns inputs with mean 0 and variance 1."""
    u = np.random.default_rng(0).standard_normal(_EXAMPLES)
    return jnp.asarray((u - u.mean()) / u.std(), jnp.float32)
