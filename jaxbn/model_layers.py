"""The `BatchNorm` layers of a whole model, Linen or NNX, and hooks for their calls.

A layer is jaxbn's or Flax's; `is_ours` decides. The names `flax.linen.BatchNorm` and
`flax.nnx.BatchNorm` do not decide, because jaxbn's classes may have been assigned to
them.

A hook is a function that gets each call of a layer and returns its output. It wraps the
`__call__` of jaxbn's or Flax's class itself. A subclass may have its own `__call__`,
which reaches the hook through `super().__call__`.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx

from jaxbn import linen, moments_collection
from jaxbn import nnx as jaxbn_nnx

Path = tuple[str, ...]
Kinds = tuple[type, ...]


def _flax_classes(root: type, module: str) -> Kinds:
    """Returns the classes named `BatchNorm` that a module of Flax has defined.

    The name in the module may be bound to another class by now.
    """
    return tuple(
        kind
        for kind in root.__subclasses__()
        if (kind.__module__, kind.__name__) == (module, "BatchNorm")
    )


FLAX_LINEN = _flax_classes(nn.Module, "flax.linen.normalization")
FLAX_NNX = _flax_classes(nnx.Module, "flax.nnx.nn.normalization")
LINEN: Kinds = (linen.BatchNorm, *FLAX_LINEN)
NNX: Kinds = (jaxbn_nnx.BatchNorm, *FLAX_NNX)


class Call(NamedTuple):
    """A call of a layer that has not been made yet."""

    layer: Any
    path: Path
    x: Any
    options: Mapping[str, Any]  # All other arguments, by name.
    proceed: Callable[[], jax.Array]  # Makes the call.


Hook = Callable[[Call], jax.Array]


def is_ours(layer: Any) -> bool:
    """Returns whether an object is a layer of jaxbn, of Linen or NNX.

    Example:
      >>> is_ours(linen.BatchNorm()), is_ours(FLAX_LINEN[0]())
      (True, False)
    """
    return isinstance(layer, (linen.BatchNorm, jaxbn_nnx.BatchNorm))


def is_flax(layer: Any) -> bool:
    """Returns whether an object is a layer of Flax, of Linen or NNX, and not jaxbn's.

    Example:
      >>> is_flax(linen.BatchNorm()), is_flax(FLAX_LINEN[0]())
      (False, True)
    """
    return isinstance(layer, (*FLAX_LINEN, *FLAX_NNX)) and not is_ours(layer)


def base_class(layer: Any) -> type[Any]:
    """Returns the class of jaxbn or Flax that a layer is an instance of."""
    return next(kind for kind in (*LINEN, *NNX) if isinstance(layer, kind))


def check_variables(model: nn.Module | nnx.Module, variables: Any) -> None:
    """Checks that variables are given with a Linen model, but not with an NNX model.

    Raises:
      ValueError: if they are missing, or given with an NNX model.
    """
    if (variables is None) != isinstance(model, nnx.Module):
        raise ValueError(
            "`variables` must be all that `model.apply` takes, and None for an NNX "
            "model."
        )


def nnx_layers(model: nnx.Module, kinds: Kinds = NNX) -> dict[Path, Any]:
    """Returns the layers of an NNX model by path; a shared layer occurs once.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), NNX[0](3, rngs=rngs))
      >>> list(nnx_layers(model))
      [('layers', '1')]
    """
    return {
        tuple(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, kinds)
    }


def check_collectable(model: nnx.Module) -> None:
    """Checks that no layer of an NNX model is Flax's, which cannot collect moments.

    Raises:
      ValueError: with the paths of Flax's layers.
    """
    layers = nnx_layers(model).items()
    theirs = sorted("/".join(path) for path, layer in layers if is_flax(layer))
    if theirs:
        raise ValueError(
            f"The moments of {theirs} could not be collected: layers must be those of "
            "`jaxbn.nnx`."
        )


@contextlib.contextmanager
def every_layer_collects() -> Iterator[None]:
    """Raises if a layer of a Linen model moves its statistics instead of collecting.

    Raises:
      ValueError: from within the block, with the path of the layer.
    """

    def check(call: Call) -> jax.Array:
        before = call.layer.get_variable("batch_stats", "mean")
        y = call.proceed()
        after = call.layer.get_variable("batch_stats", "mean")
        # Traced values cannot be compared, but an unchanged one is the same object.
        if before is not None and after is not before:
            path = "/".join(call.path)
            raise ValueError(
                f"The moments of layer {path!r} could not be collected. The layer must "
                f"be jaxbn's. {moments_collection.ADVICE}"
            )
        return y

    with hooked_linen(check):
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
def hooked_linen(hook: Hook, kinds: Kinds = LINEN):
    """Passes calls of layers of Linen models to the hook, within the block."""

    def intercept(next_function, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, kinds) or not is_call_of_linen(context):
            return next_function(*args, **kwargs)
        proceed = functools.partial(next_function, *args, **kwargs)
        return hook(_call(layer, layer.path, proceed, args, kwargs))

    with nn.intercept_methods(intercept):
        yield


def hook_nnx(hook: Hook, model: nnx.Module, kinds: Kinds = NNX) -> None:
    """Passes all later calls of the layers of this NNX model to the hook.

    It changes the model, so give a copy. Under transformations such as `nnx.jit` the
    hook is called while tracing, and a new hook causes a new trace.
    """
    for path, layer in nnx_layers(model, kinds).items():
        # The attribute is a static part of the layer, so transformations keep it.
        layer._hook = functools.partial(_hooked_call, hook, path)
        if not getattr(type(layer), "_has_hook", False):
            kind = _hooked(type(layer), base_class(layer))
            object.__setattr__(layer, "__class__", kind)


@functools.cache
def _hooked(kind: type, base: type) -> type:
    """Returns a class of layers whose calls go through their hook.

    In the method resolution order the hook comes before `base` and after its
    subclasses.
    """
    hook = _hook_class(base)
    bases = (hook,) if kind is base else (kind, hook)
    return type(kind)(kind.__name__, bases, {"__module__": kind.__module__})


@functools.cache
def _hook_class(base: Any) -> type:
    """Returns a subclass of `base` that passes its calls to the hook of the layer."""

    class Hook(base):
        _has_hook = True

        def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
            proceed = functools.partial(super().__call__, *args, **kwargs)
            return self._hook(self, proceed, args, kwargs)

    return Hook


def _hooked_call(hook: Hook, path: Path, layer, proceed, args, kwargs) -> jax.Array:
    return hook(_call(layer, path, proceed, args, kwargs))


def _call(layer: Any, path: Path, proceed: Any, args: Any, kwargs: Any) -> Call:
    names = ("x", "use_running_average")
    options = dict(zip(names, args, strict=False)) | kwargs
    return Call(layer, path, options.pop("x"), options, proceed)
