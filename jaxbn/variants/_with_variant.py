"""Variants for models that exist already."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
from flax import nnx
from jax.experimental import xla_metadata

from jaxbn._core import arguments
from jaxbn._layers import folded
from jaxbn.models import _hooks, _layers_by_path, replace
from jaxbn.models._layers_by_path import Where

Target = TypeVar("Target")

# Each function with its variant gets a number, which is part of the key of a trace, and
# the paths of the layers that it has run.
_NUMBERS: dict[Any, int] = {}
_SEEN: dict[Any, set[str]] = {}


def with_variant(target: Target, variant: Any, where: Where = None) -> Target:
    """Returns a model whose `BatchNorm` layers have a variant.

    The layers keep their parameters and statistics, and lose a policy of
    synchronisation. Nothing else changes: dropout, for instance, stays in the mode of
    the model.

    Args:
      target: an NNX model, or a function that runs Linen models, such as
        `lambda variables, x: model.apply(variables, x, train=False)`. Linen layers must
        be jaxbn's.
      variant: a variant, or None for plain Batch Normalization.
      where: the layers, as in `jaxbn.freeze`.

    Returns:
      A copy of the model, or a function.

    Raises:
      ValueError: if `where` matches no layer of jaxbn, or a layer that `jaxbn.fold` has
        folded. A returned function raises it when it is called.
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
        options = {"variant": variant} | ({"sync": None} if variant else {})
        return replace(target, where=where, **options)  # type: ignore
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
        def hook(call: _hooks.LayerCall) -> Any:
            layer, path = call.layer, "/".join(call.path)
            if _layers_by_path.is_flax(layer):
                if where is not None and is_meant(path):
                    raise ValueError(
                        f"`where` must match layers of jaxbn, got Flax's {path!r} as "
                        "well; change its import."
                    )
                return call.proceed()
            seen.add(path)
            if not is_meant(path):
                return call.proceed()
            if layer.has_variable(folded.COLLECTION, "dtype"):
                raise ValueError(f"The layer {path!r} is folded, and takes no variant.")
            before = layer.variant, layer.sync
            # The layer was made for this call of the model; it is frozen for users.
            object.__setattr__(layer, "variant", variant)
            object.__setattr__(layer, "sync", None if variant else layer.sync)
            try:
                return call.proceed()
            finally:
                object.__setattr__(layer, "variant", before[0])
                object.__setattr__(layer, "sync", before[1])

        # A jitted function within `function` must not reuse a trace without the hook.
        key = (function, variant, tuple(where) if isinstance(where, list) else where)
        seen = _SEEN.setdefault(key, set())
        number = _NUMBERS.setdefault(key, len(_NUMBERS))
        with (
            xla_metadata.set_xla_metadata(jaxbn_variant=number),
            _hooks.hooked_linen(hook),
        ):
            result = function(*args, **kwargs)
        # A jitted function that was traced before runs no layers, but they were seen.
        _layers_by_path.check_any(where, filter(is_meant, seen), seen)
        return result

    return run
