"""The diagnosis of one call of a layer, computed in float64."""

from typing import NamedTuple

import numpy as np

from jaxbn import statistics
from jaxbn.core import moments as moments_lib
from jaxbn.diagnosis.calls import Given

# Beyond these limits the running statistics do not fit the batch.
MEAN_LIMIT = 0.5
VARIANCE_LIMIT = 1.5
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


def of_call(given: Given) -> LayerDiagnosis:
    """Returns the diagnosis of one call."""
    moments = statistics.batch_moments(given.x, given.axis, given.mask)
    count, mean, var = (_channels(each) for each in moments[:3])
    running_mean, running_var = map(_channels, given.running)
    x = _elements(given.x, given.axis)
    mask = np.True_ if given.mask is None else given.mask
    valid = _elements(np.broadcast_to(mask, given.x.shape), given.axis) != 0
    x = np.where(valid, x, mean)  # Masked elements may be NaN.

    def output(center: np.ndarray, spread: np.ndarray) -> np.ndarray:
        y = (x - center) / np.sqrt(spread + given.epsilon)
        y = y if given.scale is None else y * _channels(given.scale)
        return y if given.bias is None else y + _channels(given.bias)

    trained, evaluated = output(mean, var), output(running_mean, running_var)
    shift = np.abs(trained - evaluated)[valid]
    y = np.real(trained)
    low = np.min(y, 0, where=valid, initial=np.inf)
    high = np.max(y, 0, where=valid, initial=-np.inf)
    flat = np.mean(np.abs(y) > _SATURATED, 0, where=valid | (count == 0))
    seen = count > 0
    distance = np.abs(mean - running_mean) / np.sqrt(running_var + given.epsilon)
    ratio = (var + given.epsilon) / (running_var + given.epsilon)
    worst_ratio = np.maximum(ratio, 1 / ratio)
    row = LayerDiagnosis(
        path=given.path,
        call=given.call,
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
        return (f"{most} elements per channel tell nothing: give a larger batch",)
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
