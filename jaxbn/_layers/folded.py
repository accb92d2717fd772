"""A layer after `jaxbn.fold`: an affine map, often only a bias or the identity.

The collection `folded` holds scale and bias of a Linen layer, instead of parameters and
statistics. In an NNX model `FoldedBatchNorm` replaces the layer.
"""

import functools
from collections.abc import Sequence

import jax

from jaxbn._core import affine, arguments, reduction

COLLECTION = "folded"

# The name of the function below; `jaxbn.fold` finds the layers in a program by it.
NAME = "jaxbn_folded"


def apply(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    use_running_average: bool,
    update_running_average: bool,
    axis: int | Sequence[int],
    residual: jax.typing.ArrayLike | None,
    activation: str | None,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Returns the output of a folded layer, `[N, ..., C]`.

    Args:
      x: `[N, ..., C]`.
      scale: `[C]`, or None for 1.
      bias: `[C]`, or None for 0.
      use_running_average: the switch of the call.
      update_running_average: the switch of the call.
      axis: channel axis or axes of `x`.
      residual: an array of the shape of `x`, or None.
      activation: as in `jaxbn.batch_norm_inference`.
      dtype: the dtype of the output.

    Raises:
      ValueError: if the call is in training mode, or if an argument is wrong.
    """
    if not use_running_average or update_running_average:
        raise ValueError(
            "`use_running_average` must be True, and `update_running_average` False, "
            "where `jaxbn.fold` has removed the statistics, got "
            f"{use_running_average} and {update_running_average}; train the model as "
            "it was before."
        )
    axes = arguments.as_feature_axes(axis, x.ndim)
    for name, part in (("scale", scale), ("bias", bias)):
        if part is not None:
            arguments.check_channels(name, part, tuple(x.shape[a] for a in axes))
    arguments.check_activation(x, activation, False)
    residual = arguments.as_residual(residual, x)
    return jaxbn_folded(
        x, scale, bias, residual, axes=axes, activation=activation, dtype=dtype
    )


@functools.partial(jax.jit, static_argnames=("axes", "activation", "dtype"))
def jaxbn_folded(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.Array | None,
    *,
    axes: tuple[int, ...],
    activation: str | None,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Computes `activation(x * scale + bias + residual)` in float32 or wider."""
    parts = [part for part in (scale, bias, residual) if part is not None]
    wide = affine.wide_dtype(x, *parts)

    def expanded(part: jax.Array) -> jax.Array:
        part = reduction.split_as_channels(part, x, axes)
        return affine.expander(axes, x)(part.astype(wide))

    z = x.astype(wide)
    z = z if scale is None else z * expanded(scale)
    z = z if bias is None else z + expanded(bias)
    z = z if residual is None else z + residual.astype(wide)
    z = z if activation is None else affine.ACTIVATIONS[activation](z)
    return z.astype(dtype)
