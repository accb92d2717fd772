"""Variants for models that exist already."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
from flax import nnx
from jax.experimental import xla_metadata

from jaxbn._core import arguments
from jaxbn.models import _hooks, _layers_by_path, replace
from jaxbn.models._layers_by_path import Where

Target = TypeVar("Target")

# Each variant and its layers get a number, which is part of the key of a trace.
_NUMBERS: dict[tuple[Any, Any], int] = {}


def with_variant(target: Target, variant: Any, where: Where = None) -> Target:
    """Returns a model whose `BatchNorm` layers have a variant.

    Layers of jaxbn and of Flax keep their parameters and statistics. Nothing else
    changes: dropout, for instance, stays in the mode of the model.

    Args:
      target: an NNX model, or a function that runs Linen models, such as
        `lambda variables, x: model.apply(variables, x, train=False)`. Linen layers must
        be jaxbn's.
      variant: a variant, or None for plain Batch Normalization.
      where: the layers, as in `jaxbn.freeze`.

    Returns:
      A copy of the model, or a function.

    Raises:
      ValueError: if `where` matches no layer of jaxbn. A returned function raises it
        when it is called.
      TypeError: if `variant` is none, or if `target` is a Linen module, or neither an
        NNX model nor a function.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbn import variants
      >>> from jaxbn.linen import BatchNorm
      >>> net, x = BatchNorm(use_running_average=True), jnp.array([[8.0], [12.0]])
      >>> variables = net.init(jax.random.key(0), x)
      >>> with_variant(net.apply, variants.TestTime())(variables, x).round(3)
      Array([[-1.],
             [ 1.]], dtype=float32)
    """
    arguments.check_sync_and_variant(None, variant)
    if isinstance(target, nnx.Module):
        return replace(target, where=where, variant=variant)  # type: ignore
    if isinstance(target, (nn.Module, type)) or not callable(target):
        raise TypeError(
            "`target` must be an NNX model, or a function that runs a Linen model, got "
            f"{type(target).__name__}; give for instance `model.apply`."
        )
    return _wrapped(target, variant, where)  # type: ignore


def _wrapped(function: Callable[..., Any], variant: Any, where: Where) -> Any:
    is_meant = _layers_by_path.as_predicate(where)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        seen: set[str] = set()

        def hook(call: _hooks.LayerCall) -> Any:
            layer, path = call.layer, "/".join(call.path)
            if not _layers_by_path.is_ours(layer):
                return call.proceed()
            seen.add(path)
            if not is_meant(path) or layer.variant == variant:
                return call.proceed()
            changed = layer.clone(parent=layer.scope, variant=variant)
            return changed(call.x, **call.options)

        # A jitted function within `function` must not reuse a trace without the hook.
        key = (variant, tuple(where) if isinstance(where, list) else where)
        number = _NUMBERS.setdefault(key, len(_NUMBERS))
        with (
            xla_metadata.set_xla_metadata(jaxbn_variant=number),
            _hooks.hooked_linen(hook),
        ):
            result = function(*args, **kwargs)
        if seen:  # A jitted function that was traced before runs no layers.
            _layers_by_path.check_any(where, filter(is_meant, seen), seen)
        return result

    return run
