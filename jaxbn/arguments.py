"""Checks of what users pass: static facts only, once, at the public boundary."""

import math
import typing
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxbn.core import affine, groups, reduction, running, sync


class Arguments(NamedTuple):
    """Checked arguments, as arrays of the dtypes and shapes the core expects."""

    x: jax.Array  # [N, ..., C], inexact
    scale: jax.Array  # [C]
    bias: jax.Array  # [C]
    feature_axes: tuple[int, ...]


def check_arguments(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    batch_stats: running.BatchStats,
    axis: int | Sequence[int],
) -> Arguments:
    """Fits `scale`, `bias` and `batch_stats` to the channels of `x`.

    Raises:
      ValueError: if `axis` is out of range or repeated, or a shape is not `[C]`.
      TypeError: if `batch_stats` is not a `BatchStats`, if `x` is complex and its mean
        is not, or `x` is real and `scale` or `bias` is not.
    """
    if not isinstance(batch_stats, running.BatchStats):
        raise TypeError(
            f"`batch_stats` must be a `BatchStats`, got {type(batch_stats).__name__}; "
            "make one with `BatchStats(mean, var)`."
        )
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    feature_axes = reduction.canonicalize_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in feature_axes)
    parameter_dtype = reduction.reduction_dtype(x.dtype)
    scale = jnp.ones(shape, parameter_dtype) if scale is None else jnp.asarray(scale)
    bias = jnp.zeros(shape, parameter_dtype) if bias is None else jnp.asarray(bias)
    for name, array in (
        ("scale", scale),
        ("bias", bias),
        ("batch_stats.mean", batch_stats.mean),
        ("batch_stats.var", batch_stats.var),
    ):
        check_channels(name, array, shape)
    if not jnp.iscomplexobj(x) and (jnp.iscomplexobj(scale) or jnp.iscomplexobj(bias)):
        raise TypeError(
            "`scale` and `bias` must be real for real `x`, got "
            f"{scale.dtype} and {bias.dtype}; make `x` complex."
        )
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(batch_stats.mean):
        raise TypeError(
            "`batch_stats.mean` must be complex for complex `x`, got "
            f"{jnp.result_type(batch_stats.mean)}; make it with "
            "`init_batch_stats(shape, x.dtype)`."
        )
    return Arguments(x, scale, bias, feature_axes)


def check_activation(
    x: jax.Array,
    residual: jax.typing.ArrayLike | None,
    activation: str | None,
    in_place: bool = False,
) -> jax.Array | None:
    """The residual as an array.

    Raises:
      ValueError: if its shape is not that of `x`, the activation is not known, or it
        cannot be undone in place.
      TypeError: if the residual is complex and `x` real, if there is an activation of
        complex `x`, or `in_place` is not a bool.
    """
    if activation not in (None, *affine.ACTIVATIONS):
        raise ValueError(
            f"`activation` must be None or one of {sorted(affine.ACTIVATIONS)}, got "
            f"{activation!r}; apply others to the result."
        )
    if activation is not None and jnp.iscomplexobj(x):
        raise TypeError(
            f"`activation` needs real `x`, got {x.dtype} and {activation!r}; apply one "
            "to the real and the imaginary part of the result."
        )
    if not isinstance(in_place, bool):
        raise TypeError(f"`in_place` must be True or False, got {in_place!r}.")
    if in_place and activation not in affine.INVERTIBLE:
        raise ValueError(
            "`in_place` needs an activation that can be undone, one of "
            f"{list(affine.INVERTIBLE)}, got {activation!r}; leave it out, or "
            "use `jax.checkpoint` with `jaxbn.dots_and_moments_saveable`."
        )
    if residual is None:
        return None
    residual = jnp.asarray(residual)
    if residual.shape != x.shape:
        raise ValueError(
            f"`residual` must have the shape of `x`, {x.shape}, got {residual.shape}."
        )
    if jnp.iscomplexobj(residual) and not jnp.iscomplexobj(x):
        raise TypeError(f"`residual` must be real for real `x`, got {residual.dtype}.")
    return residual


def check_channels(
    name: str, array: jax.typing.ArrayLike, shape: tuple[int, ...]
) -> None:
    """One value per channel.

    Raises:
      ValueError: if `array` has not the `shape` of the channels of `x`.
    """
    if jnp.shape(array) != shape:
        raise ValueError(
            f"`{name}` must have the shape {shape} of the channels of `x`, got "
            f"{jnp.shape(array)}; check `axis` and what the variables were made for."
        )


def check_groups(
    axis_index_groups: Sequence[Sequence[int]] | None,
    group_size: groups.GroupSize | None,
    axis_name: reduction.AxisName | None,
) -> reduction.AxisIndexGroups | None:
    """The groups of devices, or None for all together.

    Raises:
      ValueError: if there are groups but no axis name, or groups and a group size, and
        as `groups.device_groups`.
      TypeError: if `group_size` is neither an integer nor "local".
    """
    if group_size not in (None, "local") and not isinstance(group_size, int):
        raise TypeError(f"`group_size` must be an int or 'local', got {group_size!r}.")
    if group_size is not None and axis_index_groups is not None:
        raise ValueError(
            "Give `axis_index_groups` or `group_size`, not both, got "
            f"{axis_index_groups} and {group_size!r}."
        )
    if axis_name is not None:
        size = sync.axis_size(axis_name)
        return groups.device_groups(axis_index_groups, group_size, size)
    if axis_index_groups is not None:
        raise ValueError(
            "`axis_index_groups` needs an `axis_name` whose indices it groups, got "
            f"{axis_index_groups} and no name; give the name of the mapped axis."
        )
    return None


def check_momentum(momentum: jax.typing.ArrayLike) -> None:
    """Checks its range where the value is known.

    Raises:
      ValueError: if it is outside [0, 1].
    """
    if isinstance(momentum, jax.core.Tracer):
        return
    value = np.asarray(momentum)
    if not np.all((value >= 0) & (value <= 1)):
        raise ValueError(
            "`momentum` is the weight of the old running statistics and must lie in "
            f"[0, 1], got {momentum}; PyTorch's `momentum` is 1 minus this one."
        )


def check_variance(
    variance: reduction.Variance, use_fast_variance: bool
) -> reduction.Variance:
    """The form of the variance; `use_fast_variance` stands for "fast".

    Raises:
      ValueError: if it is not known, or both are given and differ.
    """
    known = typing.get_args(reduction.Variance)
    if variance not in known:
        raise ValueError(f"`variance` must be one of {list(known)}, got {variance!r}.")
    if not use_fast_variance:
        return variance
    if variance not in ("auto", "fast"):
        raise ValueError(
            f"`use_fast_variance` means `variance='fast'`, got {variance!r} as well; "
            "leave one of them out."
        )
    return "fast"


def check_dtype(dtype: jax.typing.DTypeLike | None, x: jax.Array) -> jnp.dtype:
    """The dtype of the result; that of `x` where none is given.

    Raises:
      TypeError: if it is neither a floating-point nor a complex one.
    """
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"`dtype` must be floating-point or complex, got {dtype}; round the result."
        )
    return dtype


def check_epsilon(epsilon: float) -> float:
    """As a Python number.

    Raises:
      ValueError: if it is negative.
      TypeError: if it is traced: no derivative with respect to it is taken.
    """
    if isinstance(epsilon, jax.core.Tracer):
        raise TypeError(
            f"`epsilon` must be a number known when tracing, got {epsilon}; close over "
            "it or mark it static."
        )
    if not epsilon >= 0:
        raise ValueError(
            f"`epsilon` is added to the variance and must be >= 0, got {epsilon}."
        )
    return float(epsilon)


def warn_single_value(
    x: jax.Array,
    feature_axes: tuple[int, ...],
    axis_name: reduction.AxisName | None,
    axis_index_groups: reduction.AxisIndexGroups | None,
) -> None:
    """Warns where the shapes leave one value per channel in the whole group."""
    count = math.prod(
        x.shape[a] for a in reduction.reduction_axes(x.ndim, feature_axes)
    )
    if axis_index_groups is not None:
        count *= len(axis_index_groups[0])
    elif axis_name is not None:
        count *= sync.axis_size(axis_name)
    if count == 1:
        warnings.warn(
            f"`x` of shape {x.shape} has one value per channel, which has no variance: "
            "the output is the bias and the running statistics stay as they are. "
            "Drop the last batch, merge it with another, or use the running average.",
            UserWarning,
            stacklevel=3,
        )
