"""Every variant as a case: its options, its formula, and where it is plain BN.

A formula is plain JAX. Autodiff of it in float64 gives the gradients that are compared.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from jaxbn import variants

EPSILON = 1e-3
EXAMPLES, POSITIONS, CHANNELS, INPUTS = 8, 3, 4, 4
RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((INPUTS, CHANNELS))
SCALE, BIAS = 1 + 0.3 * RNG.standard_normal(CHANNELS), RNG.standard_normal(CHANNELS)
MEAN, VAR = RNG.standard_normal(CHANNELS), 1 + RNG.random(CHANNELS)


class Case(NamedTuple):
    """A variant.

    Attributes:
      options: of `batch_norm_train`, or of `batch_norm_inference` with `infers`.
      formula: from x, scale, bias and the running mean and variance to y. All elements
        count.
      limit: options for which the variant is plain Batch Normalization, or None.
      infers: True if it changes inference, not training.
      centred: True if the formula does not subtract the mean.
    """

    options: dict[str, Any]
    formula: Callable[..., jax.Array]
    limit: dict[str, Any] | None
    infers: bool = False
    centred: bool = False


def axes_of(x):
    return tuple(range(x.ndim - 1))


def normalised(x, scale, bias, mean, var, r=1.0, d=0.0):
    return ((x - mean) / jnp.sqrt(var + EPSILON) * r + d) * scale + bias


def plain(x, scale, bias, mean=None, var=None):
    del mean, var
    return normalised(x, scale, bias, jnp.mean(x, axes_of(x)), jnp.var(x, axes_of(x)))


def renorm(x, scale, bias, mean, var):
    batch_mean, batch_var = jnp.mean(x, axes_of(x)), jnp.var(x, axes_of(x))
    std = jnp.sqrt(var + EPSILON)
    r = jnp.clip(jnp.sqrt(batch_var + EPSILON) / std, 1 / 1.2, 1.2)
    d = jnp.clip((batch_mean - mean) / std, -0.4, 0.4)
    r, d = jax.lax.stop_gradient((r, d))
    return normalised(x, scale, bias, batch_mean, batch_var, r, d)


def ghost(x, scale, bias, mean, var):
    return jnp.concatenate([plain(part, scale, bias) for part in jnp.split(x, 4)])


def example_weighting(x, scale, bias, mean, var):
    inner = tuple(range(1, x.ndim - 1))
    own_mean = jnp.mean(x, inner, keepdims=True)
    own_square = jnp.mean(x**2, inner, keepdims=True)
    # Summers and Dinneen: the moments are mixed, not the variances.
    mixed_mean = 0.7 * mean + 0.3 * own_mean
    mixed_square = 0.7 * (var + mean**2) + 0.3 * own_square
    return normalised(x, scale, bias, mixed_mean, mixed_square - mixed_mean**2)


def test_time(x, scale, bias, mean, var):
    share = len(x) / (len(x) + 6.0)
    mean = (1 - share) * mean + share * jnp.mean(x, axes_of(x))
    var = (1 - share) * var + share * jnp.var(x, axes_of(x))
    return normalised(x, scale, bias, mean, var)


def moving_average(x, scale, bias, mean, var):
    """The first step: the averages are those of this step, and r is clipped."""
    square = jnp.mean(x**2, axes_of(x))
    r = jnp.sqrt(square + EPSILON) / jnp.sqrt(var + EPSILON)
    r = jax.lax.stop_gradient(jnp.clip(r, 1 / 1.2, 1.2))
    return normalised(x, scale, bias, 0.0, square, r)


CASES = {
    "renorm": Case(
        {"variant": variants.Renorm(1.2, 0.4, warmup_steps=0)},
        renorm,
        {"variant": variants.Renorm(1.0, 0.0, warmup_steps=0)},
    ),
    "renorm, warm-up": Case(
        {"variant": variants.Renorm(1.2, 0.4, warmup_steps=5)},
        plain,
        {"variant": variants.Renorm(1.2, 0.4, warmup_steps=5)},
    ),
    "ghost": Case(variants.ghost(EXAMPLES // 4), ghost, variants.ghost(EXAMPLES)),
    "example weighting": Case(
        {"variant": variants.ExampleWeighting(0.3)},
        example_weighting,
        {"variant": variants.ExampleWeighting(0.0)},
        infers=True,
    ),
    "test time": Case(
        {"variant": variants.TestTime(6.0)},
        test_time,
        {"variant": variants.TestTime(1e30)},
        infers=True,
    ),
    "test time, batch alone": Case(
        {"variant": variants.TestTime()}, plain, None, infers=True
    ),
    "moving average": Case(
        {"variant": variants.MovingAverage(4, r_max=1.2, warmup_steps=0)},
        moving_average,
        {"variant": variants.MovingAverage(1, r_max=1.0)},
        centred=True,
    ),
    "cross iteration": Case(
        {"variant": variants.CrossIteration(INPUTS, window=3)},
        plain,  # The first step; `test_cross_iteration` has the later ones.
        {"variant": variants.CrossIteration(INPUTS, window=1)},
    ),
}
TRAINING = [name for name, case in CASES.items() if not case.infers]
INFERENCE = [name for name, case in CASES.items() if case.infers]


def stats_of(options, dtype=np.float32, mean=MEAN, var=VAR):
    """Running statistics with the first state of the variant."""
    kinds = {k: options[k] for k in ("variant", "estimator") if k in options}
    new = jaxbn.init_batch_stats(CHANNELS, dtype, **kinds)
    return new._replace(mean=jnp.asarray(mean, dtype), var=jnp.asarray(var, dtype))


def allow(formula):
    """The formula, with the broadcasting of NumPy, which jaxbn itself avoids."""

    def run(*args):
        with jax.numpy_rank_promotion("allow"):
            return formula(*args)

    return run


def apply(options, infers, inputs, mask, scale, bias, stats, axis_name=None, **more):
    """Normalises `inputs @ KERNEL`, and returns y and the new statistics."""
    kernel = jnp.asarray(KERNEL, inputs.dtype)
    x = inputs @ kernel
    options = {"epsilon": EPSILON, **options, **more}
    if infers:
        variant = options["variant"]
        if axis_name is not None and isinstance(variant, variants.TestTime):
            options["variant"] = variants.TestTime(variant.prior, axis_name)
        y = jaxbn.batch_norm_inference(x, scale, bias, stats, mask=mask, **options)
        return y, stats
    if isinstance(options.get("variant"), variants.CrossIteration):
        options["factors"] = (inputs, kernel)
    if axis_name is not None:
        options["axis_name"] = axis_name
    return jaxbn.batch_norm_train(x, scale, bias, stats, mask=mask, **options)
