"""`diagnose`, and the report that it returns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

from jaxbn import model_layers
from jaxbn.diagnosis import calls, figure, measure

_HEADER = (
    "layer", "channels", "elements", "mean off by", "variance off by", "output moves",
    "dead", "negative", "saturated", "cancels",
)  # fmt: skip


class Diagnosis(NamedTuple):
    """The diagnoses of all calls of layers, in their order."""

    layers: tuple[measure.LayerDiagnosis, ...]

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
        return figure.draw(self.layers)


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
    model_layers.check_variables(model, variables)
    rows: list[measure.LayerDiagnosis] = []

    def visit(given: calls.Given) -> None:
        rows.append(measure.of_call(given))

    if isinstance(model, nnx.Module):
        calls.of_nnx(model, batch, call, visit)
    else:
        calls.of_linen(model, variables, batch, call, rngs, visit)
    if not rows:
        raise ValueError("`call` must run a layer of `BatchNorm`, got none.")
    return Diagnosis(tuple(rows))


def _cells(row: measure.LayerDiagnosis) -> tuple[str, ...]:
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
