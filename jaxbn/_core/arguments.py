"""Checks the arrays and options that users give.

`check_...` only raises; `as_...` also converts to what the core expects. All checks are
static: they use shapes, dtypes, and values that are known while tracing. `groups`
checks groups of devices and of examples.
"""

import operator
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxbn._core import affine, product, reduction, variance

Factors = tuple[jax.typing.ArrayLike, jax.typing.ArrayLike]
"""Inputs `[N, ..., K]` and kernel `[K, C]`, whose product is `x`."""


class Arrays(NamedTuple):
    """Input and parameters, with the dtypes and shapes that the core expects."""

    x: jax.Array  # [N, ..., C], inexact
    scale: jax.Array  # [C]
    bias: jax.Array  # [C]
    feature_axes: tuple[int, ...]


def as_arrays(
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    mean: jax.typing.ArrayLike,
    var: jax.typing.ArrayLike,
    axis: int | Sequence[int],
) -> Arrays:
    """Returns input and parameters as arrays, with the channel axes of `x`."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    feature_axes = as_feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in feature_axes)
    parameter_dtype = reduction.reduction_dtype(x.dtype)
    scale = jnp.ones(shape, parameter_dtype) if scale is None else jnp.asarray(scale)
    bias = jnp.zeros(shape, parameter_dtype) if bias is None else jnp.asarray(bias)
    check_channels("scale", scale, shape)
    check_channels("bias", bias, shape)
    check_channels("batch_stats.mean", mean, shape)
    check_channels("batch_stats.var", var, shape)
    if not jnp.iscomplexobj(x) and (jnp.iscomplexobj(scale) or jnp.iscomplexobj(bias)):
        raise TypeError(
            "`scale` and `bias` must be real for real `x`, got "
            f"{scale.dtype} and {bias.dtype}; make `x` complex."
        )
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(mean):
        raise TypeError(
            "`batch_stats.mean` must be complex for complex `x`, got "
            f"{jnp.result_type(mean)}; make it with "
            "`init_batch_stats(shape, x.dtype)`."
        )
    # On a mesh of Explicit axes the parameters may be split differently from `x`.
    scale, bias = (
        reduction.split_as_channels(each, x, feature_axes) for each in (scale, bias)
    )
    return Arrays(x, scale, bias, feature_axes)


def check_features(
    x: jax.Array, axis: int | Sequence[int], shape: tuple[int, ...]
) -> None:
    """Raises a ValueError if the channels are not those of the layer."""
    if tuple(x.shape[a] for a in as_feature_axes(axis, x.ndim)) != shape:
        raise ValueError(
            f"`x` must have channels of shape {shape} on axis {axis}, as "
            f"`num_features` says, got the shape {x.shape}."
        )


def as_feature_axes(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Returns the channel axes as ascending non-negative integers."""
    if ndim == 0:
        raise ValueError("`x` must have a channel axis, got a scalar.")
    given = axis if isinstance(axis, Sequence) else (axis,)
    axes = tuple(operator.index(a) for a in given)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(
            f"`axis` must lie in [-{ndim}, {ndim}) for `x` of rank {ndim}, got {axis}."
        )
    canonical = tuple(sorted(a % ndim for a in axes))
    if len(set(canonical)) < len(canonical):
        raise ValueError(
            f"`axis` must name each axis once, got {axis} for `x` of rank {ndim}."
        )
    return canonical


def as_mask(
    mask: jax.typing.ArrayLike | None, shape: tuple[int, ...]
) -> jax.Array | None:
    """Returns the mask as booleans with as many axes as `x`, whose shape is `shape`.

    The mask broadcasts by NumPy's rule. A mask with fewer axes than `x` that also fits
    the first axes of `x` is rejected.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    full = (1,) * (len(shape) - mask.ndim) + mask.shape
    if not _broadcasts(full, shape):
        raise ValueError(
            f"`mask` must broadcast to `x` of shape {shape}, got {mask.shape}; give it "
            "a size for each axis of `x`, 1 where it does not vary, for instance "
            "`mask[..., None]`."
        )
    leading = shape[: mask.ndim]
    several = mask.size not in (0, 1)  # `> 1` may fail for a symbolic size.
    if mask.ndim < len(shape) and several and _broadcasts(mask.shape, leading):
        raise ValueError(
            f"`mask` of shape {mask.shape} could belong to the first or to the last "
            f"axes of `x` of shape {shape}; give it a size for each axis, 1 where it "
            "does not vary, for instance `mask[..., None]`."
        )
    return mask.reshape(full).astype(bool)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if len(shape) != len(to):
        return False
    return all(m in (1, n) for m, n in zip(shape, to, strict=True))


def as_residual(
    residual: jax.typing.ArrayLike | None, x: jax.Array
) -> jax.Array | None:
    """Returns the residual as an array, or None."""
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


def as_product(
    factors: Factors | None,
    x: jax.Array,
    feature_axes: tuple[int, ...],
    in_place: bool,
) -> product.Product | None:
    """Returns the factors of `x` in its dtype, or None."""
    if factors is None:
        return None
    inputs, kernel = (jnp.asarray(part, x.dtype) for part in factors)
    fit = (
        feature_axes == (x.ndim - 1,)
        and inputs.shape[:-1] == x.shape[:-1]
        and kernel.shape == (*inputs.shape[-1:], x.shape[-1])
    )
    if not fit or jnp.iscomplexobj(x):
        raise ValueError(
            "`factors` must be `(inputs, kernel)` with `x = inputs @ kernel`, real, "
            f"and channels on the last axis, got {inputs.shape} and {kernel.shape} for "
            f"`x` of {x.dtype}{list(x.shape)}; leave them out."
        )
    if in_place:
        raise ValueError(
            "`in_place` and `factors` are two ways not to keep `x`, got both; leave "
            "one of them out."
        )
    return product.Product(inputs, kernel)


def as_output(
    x: jax.Array,
    *,
    epsilon: float,
    dtype: jax.typing.DTypeLike | None,
    activation: str | None,
    in_place: bool = False,
) -> affine.Output:
    """Returns the settings of the output; the default dtype is that of `x`."""
    check_activation(x, activation, in_place)
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"`dtype` must be floating-point or complex, got {dtype}; round the result."
        )
    return affine.Output(as_epsilon(epsilon), dtype, activation, in_place)


def check_activation(x: jax.Array, activation: str | None, in_place: bool) -> None:
    """Checks that the activation exists and fits `x` and `in_place`."""
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
            "use `jax.checkpoint` with `jaxbn.remat_policy`."
        )


def as_epsilon(epsilon: float) -> float:
    """Returns epsilon as a Python number: no derivative is taken with respect to it."""
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


def check_channels(
    name: str, array: jax.typing.ArrayLike, shape: tuple[int, ...]
) -> None:
    """Checks that an array has one value for each channel of `x`."""
    if np.shape(array) != shape:
        raise ValueError(
            f"`{name}` must have the shape {shape} of the channels of `x`, got "
            f"{np.shape(array)}; check `axis`, and the channels for which it was made."
        )


def check_momentum(momentum: jax.typing.ArrayLike) -> None:
    """Checks that momentum is a number in [0, 1], if its value is known."""
    if isinstance(momentum, jax.core.Tracer):
        return
    value = np.asarray(momentum)
    if value.dtype.kind not in "fiub" and value.dtype != jnp.bfloat16:
        raise TypeError(
            f"`momentum` must be a number in [0, 1], got {momentum!r}; it is "
            "the weight of the old running statistics."
        )
    if not np.all((value >= 0) & (value <= 1)):
        raise ValueError(
            "`momentum` is the weight of the old running statistics and must lie in "
            f"[0, 1], got {momentum}; PyTorch's `momentum` is 1 minus this one."
        )


def check_variance(form: str) -> None:
    """Checks that a form of the variance exists.

    The message names only the forms for users. Benchmarks compare the others too.
    """
    if form not in variance.FORMS:
        known = list(typing.get_args(reduction.Variance))
        raise ValueError(f"`variance` must be one of {known}, got {form!r}.")


def check_sync_and_variant(sync: Any, variant: Any) -> None:
    """Checks that one of both is None and that the other one is what it should be.

    Raises:
      ValueError: if both are given.
      TypeError: if `sync` is no policy or `variant` no variant.
    """
    if sync is not None and variant is not None:
        raise ValueError(
            "`sync` and `variant` both decide which statistics normalise, got "
            f"{sync!r} and {variant!r}; leave one of them out."
        )
    if sync is not None:
        check_policy(sync)
    if variant is not None:
        _check_methods("variant", "jaxbn.variants.Renorm()", variant)


def infers(variant: Any) -> bool:
    """Returns whether a variant has an inference of its own.

    Raises:
      TypeError: if it is no variant.
    """
    check_sync_and_variant(None, variant)
    return getattr(variant, "infer", None) is not None


def is_unbiased(unbiased: bool, variant: Any) -> bool:
    """Returns whether the running variance gets the factor m / (m - 1).

    A variant that does not subtract the mean has no use for it.
    """
    return unbiased and getattr(variant, "subtracts_mean", True)


def check_policy(policy: Any) -> None:
    """Checks that an object is a policy of synchronisation.

    Raises:
      TypeError: if it lacks a method of `jaxbn.sync.Policy`, or cannot be hashed.
    """
    _check_methods("sync", "jaxbn.sync.Stale()", policy)


def _check_methods(option: str, example: str, value: Any) -> None:
    complete = all(callable(getattr(value, n, None)) for n in ("init", "normalize"))
    if not complete or isinstance(value, type):
        kind = "policy" if option == "sync" else "variant"
        raise TypeError(
            f"`{option}` must be a {kind} such as `{example}`, got {value!r}."
        )
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"`{option}` must be hashable, got {value!r}; make it a frozen dataclass."
        ) from error
