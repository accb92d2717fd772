"""`diagnose`, and the report that it returns."""

import collections
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbn import functional
from jaxbn._core import moments as moments_lib
from jaxbn.estimators import BatchStats
from jaxbn.models import _hooks, _layers_by_path
from jaxbn.models._hooks import LayerCall

_HEADER = (
    "layer", "channels", "elements", "mean off by", "variance off by", "output moves",
    "dead", "negative", "saturated", "cancels",
)  # fmt: skip

# Beyond these limits the running statistics do not fit the batch.
_MEAN_LIMIT = 0.5
_VARIANCE_LIMIT = 1.5
# Beyond this value a sigmoid has less than a tenth of its steepest slope. For tanh the
# same holds beyond half of this value.
_SATURATED = 3.7


class LayerDiagnosis(NamedTuple):
    """The diagnosis of one layer on one batch.

    The numbers are those of the worst channel, unless said otherwise. Channels without
    a valid element are left out. The real part of a complex output decides whether it
    is dead, negative or saturated.
    """

    path: str
    call: int
    """1 for the first call of this layer in a pass of the model, 2 for the second."""
    channels: int
    elements: int
    """Valid elements of the batch, in the channel that has the fewest."""
    mean_distance: float
    """Distance of batch mean and running mean, in running standard deviations."""
    variance_ratio: float
    """Ratio of batch variance and running variance; inverted if it is below 1."""
    output_shift: float
    """Root mean square of the output's change from training to evaluation."""
    dead: int
    """Channels whose output is the same for all elements."""
    negative: int
    """Channels for which a ReLU after the layer would output only zeros."""
    saturated: int
    """Channels with more than half of their output where a sigmoid is flat."""
    ill_conditioned: int
    """Channels where `E[x^2] - E[x]^2` in float32 loses more than a thousandth."""
    mean_distances: np.ndarray
    """`mean_distance` of every channel, `[C]`."""
    variance_ratios: np.ndarray
    """Batch variance divided by running variance, of every channel, `[C]`."""
    advice: tuple[str, ...]
    """Sentences that advise what to do."""

    @property
    def label(self) -> str:
        """The path, and the number of the call unless it is the first."""
        return self.path if self.call == 1 else f"{self.path} (call {self.call})"


class Diagnosis(NamedTuple):
    """The diagnoses of all calls of layers, in their order."""

    layers: tuple[LayerDiagnosis, ...]

    def __str__(self) -> str:
        """Returns a table for the terminal, and below it the advice for each layer."""
        rows = [_HEADER, *map(_cells, self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        ]
        advice = [
            f"{each.label}: {text}" for each in self.layers for text in each.advice
        ]
        return "\n".join([*(line.rstrip() for line in lines), "", *advice]).rstrip()


def diagnose(
    model: nn.Module | nnx.Module,
    variables: Mapping[str, Any] | None,
    batch: Any,
    call: Callable[[Any, Any], Any],
    *,
    rngs: Any = None,
) -> Diagnosis:
    """Compares the statistics of a batch with the running ones, layer by layer.

    The model runs once, in training mode, and is not changed. The input of each layer
    is normalised by the statistics of its valid elements (`mask` of its call). It is
    also normalised by the statistics that the layer would use in evaluation, for any
    `estimator`. Groups (`group_size`, `axis_index_groups`) are ignored: the statistics
    are those of the whole batch. If layers have an `axis_name`, build the model without
    it for the diagnosis.

    Args:
      model: a Linen model, or an NNX model, with layers of jaxbn or of Flax.
      variables: all variables that `model.apply` takes; None for an NNX model.
      batch: one batch; a large one is better.
      call: called with the model, its variables bound, and the batch. It runs the model
        in training mode, for instance
        `lambda model, batch: model(batch["x"], train=True)`. An NNX model is in that
        mode already.
      rngs: keys for the random streams of a Linen model.

    Returns:
      A `Diagnosis`, to `print`.

    Raises:
      ValueError: if no layer was called, if a layer is inside a transformation that
        hides its input, or if `variables` are missing, or given with an NNX model.

    Example:
      >>> import jax
      >>> from jaxbn.linen import BatchNorm
      >>> layer = BatchNorm(name="bn")
      >>> x = 5 + jax.random.normal(jax.random.key(0), (64, 2))
      >>> variables = layer.init(jax.random.key(0), x, use_running_average=True)
      >>> call = lambda model, x: model(x, use_running_average=False)
      >>> (found,) = diagnose(layer, variables, x, call).layers
      >>> 4.5 < found.mean_distance < 5.5, found.elements
      (True, 64)
    """
    _layers_by_path.check_variables(model, variables)
    if isinstance(model, nnx.Module):
        recorder = _Recorder(_read_nnx)
        copy = nnx.clone(model)
        copy.train()
        with _hooks.hooked_nnx(recorder.record, copy):
            call(copy, batch)
    else:
        recorder = _Recorder(_read_linen)

        def run(bound: Any, batch: Any) -> None:
            with _hooks.hooked_linen(recorder.record):
                call(bound, batch)

        writable = flax.core.DenyList("params")
        given: Any = variables
        model.apply(given, batch, method=run, mutable=writable, rngs=rngs)
    if not recorder.rows:
        raise ValueError("`call` must run a layer of `BatchNorm`, got none.")
    return Diagnosis(tuple(recorder.rows))


def _cells(row: LayerDiagnosis) -> tuple[str, ...]:
    """Returns the cells of one row of the table."""
    return (
        row.label,
        str(row.channels),
        str(row.elements),
        f"{row.mean_distance:.2f} std",
        f"x {row.variance_ratio:.2f}",
        f"{row.output_shift:.3f}",
        *(str(n) for n in (row.dead, row.negative, row.saturated)),
        str(row.ill_conditioned),
    )


def _read_linen(layer: nn.Module, collection: str, name: str) -> Any:
    return nn.meta.unbox(layer.get_variable(collection, name))


def _read_nnx(layer: nnx.Module, collection: str, name: str) -> Any:
    variable = getattr(layer, name)
    return None if variable is None else variable[...]


class _Recorder:
    """Diagnoses every call of a layer, before it updates the running statistics."""

    def __init__(self, read: Callable[[Any, str, str], Any]):
        self.read = read
        self.rows: list[LayerDiagnosis] = []
        self.numbers: collections.Counter[str] = collections.Counter()
        self.running: dict[str, BatchStats] = {}  # Before the first call.

    def record(self, call: LayerCall) -> jax.Array:
        """Diagnoses one call and makes it; this is the hook of the layers."""
        layer = call.layer
        path = "/".join(call.path) or getattr(layer, "name", None)
        path = path or type(layer).__name__
        x = jnp.asarray(call.x)
        if isinstance(x, jax.core.Tracer):
            raise ValueError(
                "`model` must call its layers outside of `jit`, `scan` and `vmap`, got "
                f"a traced input of {path!r}."
            )
        if path not in self.running:
            stats = (self.read(layer, "batch_stats", name) for name in ("mean", "var"))
            self.running[path] = BatchStats(*stats)
        self.numbers[path] += 1
        row = diagnose_call(
            x,
            call.options.get("mask"),
            self.running[path],
            self.read(layer, "params", "scale"),
            self.read(layer, "params", "bias"),
            axis=layer.axis,
            epsilon=layer.epsilon,
        )
        self.rows.append(row._replace(path=path, call=self.numbers[path]))
        return call.proceed()


def diagnose_call(
    x: Any, mask: Any, running: BatchStats, scale: Any, bias: Any, *, axis, epsilon
) -> LayerDiagnosis:
    """Returns the diagnosis of one call, without path and number."""
    moments = functional.batch_moments(x, axis, mask)
    parts = moments.count, moments.mean, moments.var
    count, mean, var = map(_channels, parts)
    running_mean, running_var = map(_channels, (running.mean, running.var))
    valid = _elements(np.broadcast_to(True if mask is None else mask, x.shape), axis)
    valid = valid != 0
    elements = np.where(valid, _elements(x, axis), mean)  # Masked ones may be NaN.

    def output(center: np.ndarray, spread: np.ndarray) -> np.ndarray:
        y = (elements - center) / np.sqrt(spread + epsilon)
        y = y if scale is None else y * _channels(scale)
        return y if bias is None else y + _channels(bias)

    trained, evaluated = output(mean, var), output(running_mean, running_var)
    shift = np.abs(trained - evaluated)[valid]
    y = np.real(trained)
    low = np.min(y, 0, where=valid, initial=np.inf)
    high = np.max(y, 0, where=valid, initial=-np.inf)
    flat = np.mean(np.abs(y) > _SATURATED, 0, where=valid | (count == 0))
    seen = count > 0
    distance = np.abs(mean - running_mean) / np.sqrt(running_var + epsilon)
    ratio = (var + epsilon) / (running_var + epsilon)
    worst_ratio = np.maximum(ratio, 1 / ratio)
    row = LayerDiagnosis(
        path="",
        call=1,
        channels=len(mean),
        elements=int(np.min(count)),
        mean_distance=float(np.max(distance, where=seen, initial=0)),
        variance_ratio=float(np.max(worst_ratio, where=seen, initial=1)),
        output_shift=float(np.sqrt(np.mean(shift**2))) if shift.size else 0.0,
        dead=int(np.sum(low == high)),
        negative=int(np.sum(seen & (high <= 0))),
        saturated=int(np.sum(seen & (flat > 0.5))),
        ill_conditioned=int(np.sum(seen & _is_ill_conditioned(moments))),
        mean_distances=np.where(seen, distance, np.nan),
        variance_ratios=np.where(seen, ratio, np.nan),
        advice=(),
    )
    return row._replace(advice=_advice(row, int(np.max(count))))


def _channels(array) -> np.ndarray:
    """Flattens an array to `[C]`, in float64 or complex128."""
    array = np.asarray(array)
    return np.ravel(array).astype(np.result_type(array.dtype, np.float64))


def _elements(array, axis) -> np.ndarray:
    """Reshapes an array to `[elements, C]`, in float64 or complex128."""
    array = np.asarray(array)
    axes = sorted(a % array.ndim for a in np.atleast_1d(axis))
    last = np.moveaxis(array, axes, range(-len(axes), 0))
    flat = last.reshape(-1, int(np.prod([array.shape[a] for a in axes])))
    return flat.astype(np.result_type(array.dtype, np.float64))


def _is_ill_conditioned(moments: moments_lib.Moments) -> np.ndarray:
    """Returns True where the one-pass formula loses a thousandth in float32, `[C]`."""
    square = moments_lib.abs_square(moments.mean)
    return np.ravel(moments.var < 1e-4 * square)


def _advice(row: LayerDiagnosis, most: int) -> tuple[str, ...]:
    """Returns the advice; `most` is the number of elements of the fullest channel."""
    if most < 2:
        return (f"{most} elements per channel have no variance: give a larger batch",)
    found = []
    if row.mean_distance > _MEAN_LIMIT or row.variance_ratio > _VARIANCE_LIMIT:
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
        found.append(
            f"{row.dead} channels are constant: look at their input and their scale"
        )
    if row.negative:
        found.append(
            f"a ReLU after this layer would output only zeros in {row.negative} "
            "channels: look at their bias"
        )
    if row.saturated:
        found.append(
            f"a sigmoid after this layer would be saturated in {row.saturated} "
            "channels: look at their scale"
        )
    if row.ill_conditioned:
        found.append(
            f"the mean of {row.ill_conditioned} channels is more than 100 standard "
            "deviations: leave `use_fast_variance` off, or centre the input"
        )
    return tuple(found)
