"""Normalisations inside and outside the gradient, in a layer and with one unit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxbn

EPSILON = 1e-5

# The first value is True to divide by the standard deviation, the second to include
# the statistics in the gradient.
VARIANTS = {
    "BN": (True, True),
    "centred inside": (False, True),
    "centred outside": (False, False),
    "centred and scaled outside": (True, False),
}


def normalise(x: jax.Array, scales: bool, inside: bool) -> jax.Array:
    """Centres `x`, `[N, C]`, and divides it by its standard deviation if `scales`.

    The gradient treats the statistics as constants unless `inside`.
    """
    mean, var = jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True)
    if not inside:
        mean, var = jax.lax.stop_gradient((mean, var))
    x = x - mean
    return x * jax.lax.rsqrt(var + EPSILON) if scales else x


class Normalisation(nn.Module):
    """A bias and a normalisation that removes it, as in the paper's Section 2.

    It uses the statistics of the batch in evaluation too.
    """

    variant: str

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Normalises `x`, `[N, C]`."""
        del use_running_average
        x = x + self.param("bias", nn.initializers.zeros, x.shape[-1:])[None]
        if self.variant == "BN":
            zeros, ones = jnp.zeros(x.shape[-1]), jnp.ones(x.shape[-1])
            stats = jaxbn.BatchStats(zeros, ones)
            return jaxbn.batch_norm_train(x, ones, zeros, stats, epsilon=EPSILON)[0]
        return normalise(x, *VARIANTS[self.variant])


_EXAMPLES = 60


def train(variant: str, learning_rate: float, steps: int) -> dict[str, np.ndarray]:
    """Returns `bias`, `scale` and `loss` of a training, `[steps + 1]` each.

    The values are those before each step and after the last. If the variant does not
    divide by the deviation, only the bias is trained, as in the paper.
    """
    scales, inside = VARIANTS[variant]
    u = inputs()
    target = u / 2 + 1

    def loss(unit: tuple[jax.Array, jax.Array]) -> jax.Array:
        scale, bias = unit
        x = normalise((scale * u + bias)[:, None], scales, inside)[:, 0]
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
