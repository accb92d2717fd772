"""Finds the factors of `x` for `ConvBatchNorm` of Linen and of NNX."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import arguments

# The attributes of a convolution that must have one of these values.
_REQUIRED = {
    "use_bias": (False,),
    "feature_group_count": (1,),
    "input_dilation": (None, 1),
    "mask": (None,),
    "precision": (None,),
    "dot_general": (None, jax.lax.dot_general),
    "dot_general_cls": (None,),
    "conv_general_dilated": (None, jax.lax.conv_general_dilated),
    "conv_general_dilated_cls": (None,),
}

# With fewer positions per input channel, `x` is not much larger than the kernel. The
# products of two kernels then need more memory than the backward pass saves.
_POSITIONS = 4


def factors(
    conv: Any,
    norm: Any,
    inputs: jax.typing.ArrayLike,
    kernel: jax.Array,
    x: jax.Array,
    *,
    convs: tuple[type, ...],
    promote_dtype: Callable[..., Any],
) -> tuple[jax.Array, jax.Array] | None:
    """Returns the inputs and the kernel whose product is `x`.

    Args:
      conv: the convolution or Dense layer.
      norm: the `BatchNorm` after it.
      inputs: `[N, ..., K]`.
      kernel: the parameter of `conv`, `[K, C]` or `[1, ..., K, C]`.
      x: the result of `conv`, `[N, ..., C]`.
      convs: the classes that `conv` may have.
      promote_dtype: the function that `conv` must use to convert its arguments.

    Returns:
      The inputs at the positions that the strides select, and the kernel `[K, C]`. None
      where the backward pass should keep `x` instead: K is at least C, there are few
      positions, or `x` is complex or has its channels on another axis.

    Raises:
      TypeError: if `conv` has another class, or `norm` is not a layer of jaxbn.
      ValueError: if `x` is not a product of the inputs and the kernel, or if `norm`
        works in place.
    """
    _check(conv, norm, kernel, convs, promote_dtype)
    inputs = jnp.asarray(inputs)
    strides = getattr(conv, "strides", None)
    steps = np.broadcast_to(1 if strides is None else strides, kernel.ndim - 2)
    inputs = inputs[(..., *(slice(None, None, step) for step in steps), slice(None))]
    *positions, k = inputs.shape
    known = all(isinstance(size, int) for size in positions)
    channels = arguments.as_feature_axes(norm.axis, x.ndim)
    # Symbolic sizes may be equal although JAX cannot decide it.
    same = tuple(positions) == x.shape[:-1] and channels == (x.ndim - 1,)
    if jnp.iscomplexobj(x) or not same:
        return None
    few = known and math.prod(positions) < _POSITIONS * k
    if (few or k >= x.shape[-1]) and not getattr(norm.variant, "needs_factors", False):
        return None
    return inputs, kernel.reshape(kernel.shape[-2:])


def _check(conv, norm, kernel, convs, promote_dtype):
    remedy = "call convolution and `BatchNorm` one after the other."
    if type(conv) not in convs:
        names = " or ".join(each.__name__ for each in convs)
        raise TypeError(
            f"`conv` must be a {names} of Flax itself, because another class may "
            f"compute something else, got {type(conv).__name__}; {remedy}"
        )
    if not hasattr(norm, "in_place"):
        raise TypeError(
            f"`norm` must be a `BatchNorm` of jaxbn, got {type(norm).__name__}; change "
            "its import."
        )
    wrong = [
        f"{name}={getattr(conv, name)!r}"
        for name, allowed in (_REQUIRED | {"promote_dtype": (promote_dtype,)}).items()
        if not _is_one_of(getattr(conv, name, allowed[0]), allowed)
    ]
    if set(kernel.shape[:-2]) - {1}:
        wrong.append(f"kernel_size={kernel.shape[:-2]}")
    padding = getattr(conv, "padding", 0)
    if not isinstance(padding, str) and any(jax.tree.leaves(padding)):
        wrong.append(f"padding={padding}")
    if wrong:
        raise ValueError(
            "`conv` must be a Dense layer or a 1x1 convolution without bias, groups, "
            "padding, precision or functions of its own, got "
            f"{', '.join(wrong)}; {remedy}"
        )
    if norm.in_place:
        raise ValueError(
            "`norm` must have `in_place=False`, because the convolution keeps its "
            f"input instead, got True; leave it out, or {remedy}"
        )


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Returns whether all leaves of a value, such as several sizes, are allowed."""
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: leaf is None)
    return all(
        any(leaf is each or (np.isscalar(leaf) and leaf == each) for each in allowed)
        for leaf in leaves
    )
