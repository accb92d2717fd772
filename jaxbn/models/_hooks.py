"""Hooks for the calls of the layers of a model.

A hook is a function that receives each call of a layer and returns its output. It wraps
the `__call__` of jaxbn's or Flax's class itself. A subclass may have its own
`__call__`, which reaches the hook through `super().__call__`.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx

from jaxbn._layers import accumulation
from jaxbn.models import _layers_by_path
from jaxbn.models._layers_by_path import LINEN, NNX, Path, base_class


class LayerCall(NamedTuple):
    """A call of a layer that has not been made yet."""

    layer: Any
    path: Path
    x: Any
    options: Mapping[str, Any]  # All other arguments, by name.
    proceed: Callable[[], jax.Array]  # Makes the call.


Hook = Callable[[LayerCall], jax.Array]

# Two threads that change the classes at once could restore the wrong functions.
_LOCK = threading.RLock()


@contextlib.contextmanager
def hooked_linen(hook: Hook) -> Iterator[None]:
    """Passes calls of layers of Linen models to the hook, within the block."""

    def intercept(next_function, args, kwargs, context):
        layer = context.module
        if not is_call_of_linen(context):
            return next_function(*args, **kwargs)
        proceed = functools.partial(next_function, *args, **kwargs)
        return hook(_layer_call(layer, layer.path, proceed, args, kwargs))

    with nn.intercept_methods(intercept):
        yield


def is_call_of_linen(context: nn.module.InterceptorContext) -> bool:
    """Returns whether a method that Flax intercepts is the call of a layer.

    Only the `__call__` of jaxbn's or Flax's own class counts. Flax also intercepts that
    of a subclass, which may take other arguments and do more than normalise.
    """
    layer, method = context.module, context.orig_method
    if not isinstance(layer, LINEN) or not isinstance(method, functools.partial):
        return False
    base: Any = base_class(layer)
    return method.func is inspect.unwrap(base.__call__)


@contextlib.contextmanager
def every_layer_accumulates() -> Iterator[None]:
    """Raises if a layer of a Linen model updates its statistics within the block.

    Raises:
      ValueError: from within the block, with the path of the layer.
    """

    def check(call: LayerCall) -> jax.Array:
        before = call.layer.get_variable("batch_stats", "mean")
        y = call.proceed()
        after = call.layer.get_variable("batch_stats", "mean")
        # Traced values cannot be compared, but an unchanged value is the same object.
        if before is not None and after is not before:
            path = "/".join(call.path)
            raise ValueError(
                f"The moments of layer {path!r} could not be collected. The layer must "
                f"be jaxbn's. {accumulation.ADVICE}"
            )
        return y

    with hooked_linen(check):
        yield


@contextlib.contextmanager
def hooked_nnx(hook: Hook, model: nnx.Module) -> Iterator[None]:
    """Passes calls of the layers of this NNX model to the hook, within the block.

    The layers are marked with the hook, so give a copy of the model. Under
    transformations such as `nnx.jit` the hook is called while tracing, and a new hook
    causes a new trace.
    """
    for path, layer in _layers_by_path.nnx_layers(model, NNX).items():
        # The attribute is a static part of the layer, so transformations keep it.
        layer._hook = functools.partial(_call_hook, hook, path)
    # NNX has nothing like `nn.intercept_methods`, so the classes themselves change.
    with _LOCK, contextlib.ExitStack() as stack:
        for kind in NNX:
            stack.callback(setattr, kind, "__call__", kind.__call__)
            setattr(kind, "__call__", _with_hook(nnx_call(kind)))  # noqa: B010
        yield


def nnx_call(kind: Any) -> Callable[..., jax.Array]:
    """Returns the `__call__` of an NNX class without the hook."""
    return getattr(kind.__call__, "_without_hook", kind.__call__)


def _with_hook(call: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a `__call__` that passes calls of marked layers to their hook."""

    @functools.wraps(call)
    def hooked(self: Any, *args: Any, **kwargs: Any) -> jax.Array:
        hook = getattr(self, "_hook", None)
        if hook is None:  # The layer is of another model.
            return call(self, *args, **kwargs)
        return hook(self, functools.partial(call, self, *args, **kwargs), args, kwargs)

    hooked._without_hook = call  # type: ignore
    return hooked


def _call_hook(hook: Hook, path: Path, layer, proceed, args, kwargs) -> jax.Array:
    return hook(_layer_call(layer, path, proceed, args, kwargs))


def _layer_call(layer: Any, path: Path, proceed: Any, args: Any, kwargs: Any):
    names = ("x", "use_running_average")
    options = dict(zip(names, args, strict=False)) | kwargs
    return LayerCall(layer, path, options.pop("x"), options, proceed)
