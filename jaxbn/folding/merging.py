"""The arithmetic of folding, which merges affine maps into neighbouring parameters.

A normalisation in evaluation is  y = scale * x + shift  per channel. Together with a
linear layer before or after it, it is another linear layer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxbn.folding.graph import Axes, Value
from jaxbn.folding.linear import Following, Preceding


class Affine(NamedTuple):
    """`y = scale * x + shift`, `[C]` each in float64; None if it was folded."""

    scale: Any
    shift: Any


def into_preceding(
    found: Preceding, affine: Affine, parameters: Mapping[Value, Any]
) -> tuple[dict[Value, np.ndarray], Affine]:
    """Merges `scale * (kernel x + bias) + shift` into one layer.

    Args:
      found: the layer before.
      affine: the affine map, with both arrays.
      parameters: the parameters of the model.

    Returns:
      The parameters that change, and the rest of the affine map. The rest is the shift
      if the layer has no bias.
    """
    kernel = np.asarray(parameters[found.kernel.leaf])
    changed = {
        found.kernel.leaf: kernel * along(affine.scale, found.kernel.axes, kernel.ndim)
    }
    if found.bias is None:
        return changed, Affine(None, affine.shift)
    bias = np.asarray(parameters[found.bias.leaf])
    scale, shift = (
        along(part, found.bias.axes, bias.ndim) for part in (affine.scale, affine.shift)
    )
    return {**changed, found.bias.leaf: scale * bias + shift}, Affine(None, None)


def into_following(
    found: Following, affine: Affine, parameters: Mapping[Value, Any]
) -> tuple[dict[Value, np.ndarray], np.ndarray]:
    """Merges `kernel (scale * x + shift)` into one layer.

    Returns:
      The kernel that changes, and the numbers to add to the outputs.
    """
    kernel = np.asarray(parameters[found.kernel.leaf])
    scale, shift = (
        _over_inputs(part, found, kernel.shape) for part in (affine.scale, affine.shift)
    )
    summed = tuple(a for a in range(kernel.ndim) if a not in found.outputs)
    moved = np.sum(kernel * shift, summed)
    # The sum keeps the order of the kernel's axes, not that of the outputs.
    moved = np.transpose(moved, np.argsort(np.argsort(found.outputs)))
    return {found.kernel.leaf: kernel * scale}, moved


def _over_inputs(
    values: np.ndarray, found: Following, shape: tuple[int, ...]
) -> np.ndarray:
    """Shapes `[C]` to broadcast over the inputs of the kernel, by groups."""
    if found.groups == 1:
        return along(values, found.kernel.axes, len(shape))
    (inputs,), (outputs,) = found.kernel.axes, found.outputs
    by_group = values.reshape(found.groups, shape[inputs])
    each = np.repeat(by_group, shape[outputs] // found.groups, axis=0)
    return along(each, (outputs, inputs), len(shape))


def along(values: np.ndarray, axes: Axes, ndim: int) -> np.ndarray:
    """Moves the axes of an array to the given places among `ndim` axes."""
    order = np.argsort(axes)
    others = tuple(a for a in range(ndim) if a not in axes)
    return np.expand_dims(np.transpose(values, order), others)
