"""Why evaluation differs from training: the batch beside the running statistics.

Works on any Linen model with layers of `jaxbn.linen.BatchNorm` or of Flax's own.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxbn import linen, statistics
from jaxbn.core import moments as moments_lib

_LAYERS = (linen.BatchNorm, nn.BatchNorm)
# Beyond this a sigmoid has less than a tenth of its steepest slope, and so has tanh
# beyond half of it.
_SATURATED = 3.7


class LayerDiagnosis(NamedTuple):
    """What one layer shows on one batch; worst channels where not said otherwise."""

    path: str
    channels: int
    elements: int
    """Of the batch, per channel."""
    mean_distance: float
    """Of the batch's mean from the running one, in running standard deviations."""
    variance_ratio: float
    """Of the batch's variance to the running one, or the inverse: at least 1."""
    output_shift: float
    """Root mean square by which the output moves from training to evaluation."""
    dead: int
    """Channels whose output is the same for all elements."""
    negative: int
    """Channels that a ReLU after the layer would make 0 everywhere."""
    saturated: int
    """Channels half of whose output lies where a sigmoid is flat."""
    ill_conditioned: int
    """Channels in which `E[x^2] - E[x]^2` in float32 loses more than a thousandth."""
    advice: tuple[str, ...]
    """What to do about it, in words."""

    def _cells(self) -> tuple[str, ...]:
        """The row of the table."""
        return (
            self.path,
            str(self.channels),
            str(self.elements),
            f"{self.mean_distance:.2f} std",
            f"x {self.variance_ratio:.2f}",
            f"{self.output_shift:.3f}",
            *(str(n) for n in (self.dead, self.negative, self.saturated)),
            str(self.ill_conditioned),
        )


class Diagnosis(NamedTuple):
    """One row per layer, in the order in which they are called."""

    layers: tuple[LayerDiagnosis, ...]

    def __str__(self) -> str:
        """A table for the terminal, then advice by layer."""
        header = (
            "layer", "channels", "elements", "mean off by", "variance off by",
            "output moves", "dead", "negative", "saturated", "cancels",
        )  # fmt: skip
        rows = [each._cells() for each in self.layers]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in (header, *rows)
        ]
        advice = [
            f"{each.path}: {text}" for each in self.layers for text in each.advice
        ]
        return "\n".join([*(line.rstrip() for line in lines), "", *advice]).rstrip()


def diagnose(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Any,
    call: Callable[[Any, Any], Any],
    *,
    rngs: Any = None,
) -> Diagnosis:
    """Compares the statistics of a batch with the running ones, layer by layer.

    The model runs once, in training mode, and nothing is changed. What a layer is given
    is normalised by both kinds of statistics. Masks and groups are left out.

    Args:
      model: a Linen model.
      variables: all that `model.apply` takes.
      batch: one batch, better a large one.
      call: called with the model, its variables bound, and the batch; runs the model in
        training mode, for instance
        `lambda model, batch: model(batch["x"], train=True)`.
      rngs: keys for the random streams of the model.

    Returns:
      A `Diagnosis`; `print` it.

    Raises:
      ValueError: if no layer was called, or one under a transformation that hides its
        input.

    Example:
      >>> from jaxbn.linen import BatchNorm
      >>> layer = BatchNorm(name="bn")
      >>> x = 5 + jax.random.normal(jax.random.key(0), (64, 2))
      >>> variables = layer.init(jax.random.key(0), x, use_running_average=True)
      >>> call = lambda model, x: model(x, use_running_average=False)
      >>> (found,) = diagnose(layer, variables, x, call).layers
      >>> 4.5 < found.mean_distance < 5.5, found.elements
      (True, 64)
    """
    rows: list[LayerDiagnosis] = []

    def note(next_function, args, kwargs, context):
        if isinstance(context.module, _LAYERS) and context.method_name == "__call__":
            x = args[0] if args else kwargs["x"]
            # Before the call, which moves the running statistics.
            rows.append(_of_layer(context.module, jnp.asarray(x)))
        return next_function(*args, **kwargs)

    def run(bound: Any, batch: Any) -> None:
        with nn.intercept_methods(note):
            call(bound, batch)

    model.apply(
        variables, batch, method=run, mutable=flax.core.DenyList("params"), rngs=rngs
    )
    if not rows:
        raise ValueError("`call` must run a layer of `BatchNorm`, got none.")
    return Diagnosis(tuple(rows))


def _of_layer(layer: Any, x: jax.Array) -> LayerDiagnosis:
    if isinstance(x, jax.core.Tracer):
        raise ValueError(
            f"`model` must call its layers outside of `jit`, `nn.scan` and `nn.vmap`, "
            f"got a traced input of {'/'.join(layer.path)!r}."
        )
    moments = statistics.batch_moments(x, layer.axis)
    stats = {
        name: np.asarray(nn.meta.unbox(layer.get_variable("batch_stats", name)))
        for name in ("mean", "var")
    }
    affine = {
        name: None if value is None else np.asarray(nn.meta.unbox(value))
        for name in ("scale", "bias")
        for value in [layer.get_variable("params", name)]
    }
    axes = sorted(a % x.ndim for a in np.atleast_1d(layer.axis))
    flat = np.moveaxis(np.asarray(x, np.float64), axes, range(-len(axes), 0))
    flat = flat.reshape(-1, int(np.prod([x.shape[a] for a in axes])))
    outputs = []
    mean, var = (np.ravel(np.asarray(a, np.float64)) for a in moments[1:3])
    running_mean, running_var = (np.ravel(stats[n]).astype(float) for n in stats)
    for center, spread in ((mean, var), (running_mean, running_var)):
        y = (flat - center) / np.sqrt(spread + layer.epsilon)
        y = y if affine["scale"] is None else y * np.ravel(affine["scale"])
        y = y if affine["bias"] is None else y + np.ravel(affine["bias"])
        outputs.append(y)
    trained, evaluated = outputs
    std = np.sqrt(running_var + layer.epsilon)
    ratio = (var + layer.epsilon) / (running_var + layer.epsilon)
    conditioned = np.asarray(_well_conditioned(moments))
    row = LayerDiagnosis(
        path="/".join(layer.path) or layer.name or type(layer).__name__,
        channels=flat.shape[1],
        elements=len(flat),
        mean_distance=float(np.max(np.abs(mean - running_mean) / std)),
        variance_ratio=float(np.max(np.maximum(ratio, 1 / ratio))),
        output_shift=float(np.sqrt(np.mean((trained - evaluated) ** 2))),
        dead=int(np.sum(np.ptp(trained, 0) == 0)),
        negative=int(np.sum(np.max(trained, 0) <= 0)),
        saturated=int(np.sum(np.mean(np.abs(trained) > _SATURATED, 0) > 0.5)),
        ill_conditioned=int(np.sum(~conditioned)),
        advice=(),
    )
    return row._replace(advice=_advice(row))


def _well_conditioned(moments: moments_lib.Moments) -> jax.Array:
    """By channel: whether the one-pass formula keeps a thousandth in float32."""
    square = moments_lib.abs_square(moments.mean)
    return moments.var >= 1e-4 * square


def _advice(row: LayerDiagnosis) -> tuple[str, ...]:
    found = []
    if row.mean_distance > 0.5 or row.variance_ratio > 1.5:
        found.append(
            "the running statistics are not those of this batch: recalibrate "
            "(`jaxbn.recalibrate`), train longer, or lower `momentum`"
        )
    if row.elements < 32:
        found.append(
            f"{row.elements} elements per channel are few: share statistics over "
            "devices (`axis_name`), or use a larger batch"
        )
    if row.dead:
        found.append(f"{row.dead} channels are constant: their input or their scale is")
    if row.negative:
        found.append(f"a ReLU would end {row.negative} channels: look at their bias")
    if row.saturated:
        found.append(
            f"{row.saturated} channels would saturate a sigmoid: look at their scale"
        )
    if row.ill_conditioned:
        found.append(
            f"the mean of {row.ill_conditioned} channels is beyond 100 of their "
            "deviations: leave `use_fast_variance` off, or centre the input"
        )
    return tuple(found)
