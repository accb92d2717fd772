"""`diagnose`, and the report that it returns."""

import collections
from collections.abc import Callable, Mapping, Sequence
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
MEAN_LIMIT = 0.5
VARIANCE_LIMIT = 1.5
# Beyond this value a sigmoid has less than a tenth of its steepest slope. For tanh the
# same holds beyond half of this value.
_SATURATED = 3.7

# The colours of layers beyond the limits and within them.
_OFF, _RIGHT = "tab:red", "tab:blue"


class RecordedCall(NamedTuple):
    """The input of one call of one layer, and the state of the layer before it."""

    path: str
    call: int  # 1 for the first call of this layer.
    x: jax.Array
    mask: jax.Array | None  # Of the shape of `x`.
    running: BatchStats  # The mean and the variance that inference would use.
    scale: jax.Array | None
    bias: jax.Array | None
    axis: Any
    epsilon: float


# A function that receives each call when it is made. Calls are not kept, because all
# inputs together are large.
Visit = Callable[[RecordedCall], None]


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

    def figure(self) -> Any:
        """Draws which layers' running statistics are off, as a matplotlib `Figure`.

        One panel is for the mean and one for the variance. Each layer is a line from
        its best to its worst channel, with the median marked. Layers beyond the dashed
        lines should be recalibrated. `figure.savefig("diagnosis.png")` saves the
        figure.

        Raises:
          ModuleNotFoundError: if matplotlib is not installed.
        """
        return _draw(self.layers)


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
      A `Diagnosis`; `print` it, or look at its `figure()`.

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
    rows: list[LayerDiagnosis] = []

    def visit(recorded: RecordedCall) -> None:
        rows.append(diagnose_call(recorded))

    if isinstance(model, nnx.Module):
        visit_nnx(model, batch, call, visit)
    else:
        visit_linen(model, variables, batch, call, rngs, visit)
    if not rows:
        raise ValueError("`call` must run a layer of `BatchNorm`, got none.")
    return Diagnosis(tuple(rows))


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


def visit_linen(
    model: nn.Module,
    variables: Any,
    batch: Any,
    call: Callable,
    rngs: Any,
    visit: Visit,
) -> None:
    """Visits the calls of a Linen model, in their order."""

    def read(layer: Any, collection: str, name: str) -> Any:
        return nn.meta.unbox(layer.get_variable(collection, name))

    recorder = _Recorder(read, visit)

    def run(bound: Any, batch: Any) -> None:
        with _hooks.hooked_linen(recorder.record):
            call(bound, batch)

    model.apply(
        variables, batch, method=run, mutable=flax.core.DenyList("params"), rngs=rngs
    )


def visit_nnx(model: nnx.Module, batch: Any, call: Callable, visit: Visit) -> None:
    """Visits the calls of a copy of an NNX model, in their order."""

    def read(layer: Any, collection: str, name: str) -> Any:
        variable = getattr(layer, name)
        return None if variable is None else variable[...]

    recorder = _Recorder(read, visit)
    copy = nnx.clone(model)
    copy.train()
    with _hooks.hooked_nnx(recorder.record, copy):
        call(copy, batch)


class _Recorder:
    """Passes every call to `visit`, before it updates the running statistics."""

    def __init__(self, read: Callable[[Any, str, str], Any], visit: Visit):
        self.read, self.visit = read, visit
        self.numbers: collections.Counter[str] = collections.Counter()
        self.running: dict[str, BatchStats] = {}  # Before the first call.

    def record(self, call: LayerCall) -> jax.Array:
        """Visits one call and makes it; this is the hook of the layers."""
        layer = call.layer
        path = "/".join(call.path) or getattr(layer, "name", None)
        path = path or type(layer).__name__
        x = jnp.asarray(call.x)
        mask = call.options.get("mask")
        if isinstance(x, jax.core.Tracer):
            raise ValueError(
                "`model` must call its layers outside of `jit`, `scan` and `vmap`, got "
                f"a traced input of {path!r}."
            )
        if path not in self.running:
            self.running[path] = self._running(layer)
        self.numbers[path] += 1
        self.visit(
            RecordedCall(
                path=path,
                call=self.numbers[path],
                x=x,
                mask=None if mask is None else _as_mask(mask, x),
                running=self.running[path],
                scale=self.read(layer, "params", "scale"),
                bias=self.read(layer, "params", "bias"),
                axis=layer.axis,
                epsilon=layer.epsilon,
            )
        )
        return call.proceed()

    def _running(self, layer: Any) -> BatchStats:
        mean, var = (self.read(layer, "batch_stats", name) for name in ("mean", "var"))
        return BatchStats(mean, var)


def _as_mask(mask: Any, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)


def diagnose_call(recorded: RecordedCall) -> LayerDiagnosis:
    """Returns the diagnosis of one call."""
    moments = functional.batch_moments(recorded.x, recorded.axis, recorded.mask)
    parts = moments.count, moments.mean, moments.var
    count, mean, var = map(_channels, parts)
    running_mean, running_var = map(
        _channels, (recorded.running.mean, recorded.running.var)
    )
    x = _elements(recorded.x, recorded.axis)
    mask = np.True_ if recorded.mask is None else recorded.mask
    valid = _elements(np.broadcast_to(mask, recorded.x.shape), recorded.axis) != 0
    x = np.where(valid, x, mean)  # Masked elements may be NaN.

    def output(center: np.ndarray, spread: np.ndarray) -> np.ndarray:
        y = (x - center) / np.sqrt(spread + recorded.epsilon)
        y = y if recorded.scale is None else y * _channels(recorded.scale)
        return y if recorded.bias is None else y + _channels(recorded.bias)

    trained, evaluated = output(mean, var), output(running_mean, running_var)
    shift = np.abs(trained - evaluated)[valid]
    y = np.real(trained)
    low = np.min(y, 0, where=valid, initial=np.inf)
    high = np.max(y, 0, where=valid, initial=-np.inf)
    flat = np.mean(np.abs(y) > _SATURATED, 0, where=valid | (count == 0))
    seen = count > 0
    distance = np.abs(mean - running_mean) / np.sqrt(running_var + recorded.epsilon)
    ratio = (var + recorded.epsilon) / (running_var + recorded.epsilon)
    worst_ratio = np.maximum(ratio, 1 / ratio)
    row = LayerDiagnosis(
        path=recorded.path,
        call=recorded.call,
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
    if row.mean_distance > MEAN_LIMIT or row.variance_ratio > VARIANCE_LIMIT:
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


def _draw(layers: Sequence[LayerDiagnosis]) -> Any:
    """Draws a panel for the mean and one for the variance, with a line per layer."""
    # `pyplot` would choose a window system and keep the figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.6 + 0.28 * len(layers)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, layers, lambda row: row.mean_distances, (-np.inf, MEAN_LIMIT))
    left.set(xlabel="running standard deviations", title="mean is off by")
    left.set_xlim(0, max(1.2 * MEAN_LIMIT, left.get_xlim()[1]))
    limits = (1 / VARIANCE_LIMIT, VARIANCE_LIMIT)
    _panel(right, layers, lambda row: row.variance_ratios, limits)
    right.set(
        xlabel="variance of the batch / running variance",
        title="variance is off by a factor of",
    )
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
    low, high = right.get_xlim()
    right.set_xlim(min(low, 0.5), max(high, 2))
    left.set_yticks(range(len(layers)), [row.label for row in layers])
    left.set_ylim(len(layers) - 0.5, -0.5)  # The first layer is at the top.
    off = sum(map(_is_off, layers))
    figure.suptitle(
        f"Running statistics are off in {off} of {len(layers)} layers (red): a channel "
        "beyond a dashed line; dots are medians of the channels",
        fontsize=10,
    )
    return figure


def _panel(
    axes: Any,
    layers: Sequence[LayerDiagnosis],
    values: Callable[[LayerDiagnosis], np.ndarray],
    limits: tuple[float, float],
) -> None:
    """Draws a line per layer from its best to its worst channel.

    The median is a dot. A layer with a channel beyond a limit is red.
    """
    for place, row in enumerate(layers):
        seen = values(row)[np.isfinite(values(row))]
        if not seen.size:
            continue
        beyond = np.min(seen) < limits[0] or np.max(seen) > limits[1]
        color = _OFF if beyond else _RIGHT
        axes.plot([np.min(seen), np.max(seen)], [place, place], "|-", color=color)
        axes.plot(np.median(seen), place, "o", color=color)
    for limit in filter(np.isfinite, limits):
        axes.axvline(limit, color="tab:gray", linestyle="--", linewidth=1)
    axes.grid(axis="y", alpha=0.3)


def _is_off(row: LayerDiagnosis) -> bool:
    return row.mean_distance > MEAN_LIMIT or row.variance_ratio > VARIANCE_LIMIT
