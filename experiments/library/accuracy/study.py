"""Measures errors of output, gradients and variance at a large mean.

The input of one layer is `x = ratio + N(0, 1)` per channel, rounded to its dtype. The
reference is computed in float64 from the rounded values. Expected: the error of the
gradient of the scale stays at the rounding of its sum, because a mean is kept as two
floats. With one float it grows with the ratio and with the mean of the cotangent.
"""

import contextlib
import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.framework import options, study
from experiments.library.accuracy import figure, forms, report
from jaxbn import linen

# Beyond a mean of 100 a bfloat16 cannot represent deviations of 1.
RATIOS = {"float32": (1.0, 1e1, 1e2, 1e3, 1e4), "bfloat16": (1.0, 1e1, 1e2)}
CHANNELS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy(study.Study):
    """Measures errors of output, gradients and variance at a large mean (2 minutes)."""

    name = "accuracy"
    small: ClassVar = {"elements": (4096,)}
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    elements: tuple[int, ...] = (4096, 1_000_000)
    """The numbers of elements per channel; each gives a batch."""

    def check(self) -> None:
        options.check_at_least(self, elements=2)

    def measure(self) -> dict[str, Any]:
        """Returns a row for every batch, and one for every form of the variance."""
        rows = [
            errors(elements, ratio, mean, dtype)
            for dtype, ratios in RATIOS.items()
            for elements in self.elements
            for mean in (0.0, 1.0)
            for ratio in ratios
        ]
        shapes = forms.SMALL if self.quick else forms.SHAPES
        return {"rows": rows, "forms": list(forms.rows(shapes))}


def errors(elements: int, ratio: float, mean: float, dtype: str) -> dict[str, Any]:
    """Returns the relative errors of one batch.

    An error is a root mean square, divided by that of the exact values. The error of
    the gradient of the scale is divided by `sqrt(sum(dy^2))`, its size if `dy` is not
    correlated with the input.

    Args:
      elements: the elements per channel.
      ratio: the mean of the input divided by its standard deviation.
      mean: the mean of the cotangent, whose deviations are N(0, 1).
      dtype: the dtype of the input and the cotangent.
    """
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, elements, CHANNELS))
    x, dy = (_rounded(x + ratio, dtype), _rounded(dy + mean, dtype))
    expected = _reference(np.float64(x), np.float64(dy))
    sizes = [_rms(expected[0]), _rms(expected[1]), np.sqrt((dy**2).sum(0)).mean()]
    errors = {
        name: {
            quantity: float(f"{_rms(np.float64(value) - truth) / size:.1e}")
            for quantity, value, truth, size in zip(
                report.QUANTITIES, made, expected, sizes, strict=True
            )
        }
        for name, made in _computed(x, dy, dtype).items()
    }
    about = {"elements": elements, "ratio": ratio, "mean": mean, "dtype": dtype}
    return about | {"errors": errors}


def _reference(x, dy, epsilon=1e-5):
    """Computes the paper's formulas with scale 1 and bias 0."""
    centered = x - x.mean(0)
    std = np.sqrt((centered**2).mean(0) + epsilon)
    x_hat = centered / std
    product = (dy * x_hat).sum(0)
    dx = (dy - dy.mean(0) - x_hat * product / len(x)) / std
    return x_hat, dx, product


def _computed(x, dy, dtype) -> dict[str, tuple[Any, Any, Any]]:
    layers = {
        "jaxbn": linen.BatchNorm(use_running_average=False),
        "flax fast": nn.BatchNorm(use_running_average=False),
        "flax stable": nn.BatchNorm(use_running_average=False, use_fast_variance=False),
    }
    made = {name: _jax(layer, x, dy, dtype) for name, layer in layers.items()}
    with contextlib.suppress(ImportError):
        made["torch"] = _torch(x, dy, dtype)
    return {name: tuple(np.float64(a) for a in each) for name, each in made.items()}


def _jax(layer, x, dy, dtype):
    x, dy = (jnp.asarray(a, dtype) for a in (x, dy))
    layer = layer.clone(dtype=x.dtype)
    variables = layer.init(jax.random.key(0), x[:2])

    @jax.jit
    def both(params, x, dy):
        def apply(params, x):
            given = variables | {"params": params}
            return layer.apply(given, x, mutable=["batch_stats"])[0]

        y, vjp = jax.vjp(apply, params, x)
        dparams, dx = vjp(dy)
        return y, dx, dparams["scale"]

    return both(variables["params"], x, dy)


def _torch(x, dy, dtype):
    import torch

    x, dy = (torch.tensor(a).to(getattr(torch, dtype)) for a in (x, dy))
    scale, bias = torch.ones(CHANNELS), torch.zeros(CHANNELS)
    x.requires_grad_()
    scale.requires_grad_()
    stats = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    y = torch.nn.functional.batch_norm(x, *stats, scale, bias, training=True)
    dx, dscale = torch.autograd.grad(y, (x, scale), dy)
    return [a.detach().float().numpy() for a in (y, dx, dscale)]


def _rounded(values, dtype) -> np.ndarray:
    """Rounds values to `dtype` and returns them as float32."""
    return np.asarray(jnp.asarray(values, dtype), np.float32)


def _rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
