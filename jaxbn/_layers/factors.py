"""The factors of the result of a 1x1 convolution or a Dense layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The attributes of Flax's layers that must have one of these values.
_REQUIRED = {
    "use_bias": (False,),
    "feature_group_count": (1,),
    "mask": (None,),
    "precision": (None,),
    "dot_general": (None, jax.lax.dot_general),
    "dot_general_cls": (None,),
    "conv_general_dilated": (None, jax.lax.conv_general_dilated),
    "conv_general_dilated_cls": (None,),
}


def of_layer(
    layer: Any, inputs: jax.typing.ArrayLike, kernel: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array] | None:
    """Returns the inputs and the kernel whose product is the layer's result.

    Args:
      layer: a `Conv`, `Dense` or `Linear` of Flax.
      inputs: `[N, ..., K]`.
      kernel: the parameter of the layer, `[K, C]` or `[1, ..., K, C]`.
      x: the result, `[N, ..., C]`.

    Returns:
      The inputs at the positions that the strides select, and the kernel `[K, C]`. None
      where keeping them instead of `x` saves nothing: K is at least C, or the batch has
      so few positions that `x` is not much larger than the kernel.

    Raises:
      ValueError: if the result is not a product of the inputs and the kernel.
    """
    wrong = {
        name: getattr(layer, name)
        for name, allowed in _REQUIRED.items()
        if not any(getattr(layer, name, allowed[0]) is value for value in allowed)
    }
    inputs = jnp.asarray(inputs)
    spatial = kernel.ndim - 2
    strides = getattr(layer, "strides", None)
    steps = np.broadcast_to(1 if strides is None else strides, spatial)
    inputs = inputs[(..., *(slice(None, None, step) for step in steps), slice(None))]
    if set(kernel.shape[:-2]) - {1}:
        wrong["kernel_size"] = kernel.shape[:-2]
    elif inputs.shape[:-1] != x.shape[:-1]:
        wrong["padding or dilation, which changes the size to"] = x.shape[:-1]
    if wrong:
        raise ValueError(
            "`conv` must be a Dense layer or a 1x1 convolution without bias, groups, "
            "padding, precision and functions of its own, got "
            + ", ".join(f"{name}={value!r}" for name, value in wrong.items())
            + "; call convolution and `BatchNorm` one after the other."
        )
    *positions, k = inputs.shape
    if k >= x.shape[-1] or 4 * k > math.prod(positions) or jnp.iscomplexobj(x):
        return None
    return inputs, kernel.reshape(kernel.shape[-2:])
