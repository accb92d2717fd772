"""The `BatchNorm` layers of a whole model, Linen or NNX, and the calls that it makes.

A hook stands between a model and its layers: it is given every call and returns what
the layer would have returned.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import nnx

from jaxbn import linen
from jaxbn import nnx as jaxbn_nnx

Path = tuple[str, ...]
Kinds = tuple[type, ...]

LINEN: Kinds = (linen.BatchNorm, nn.BatchNorm)
NNX: Kinds = (jaxbn_nnx.BatchNorm, nnx.BatchNorm)


class Call(NamedTuple):
    """A call of a layer that has not been made yet."""

    layer: Any
    path: Path
    x: Any
    options: Mapping[str, Any]  # All other arguments, by name.
    proceed: Callable[[], jax.Array]  # Makes the call.


Hook = Callable[[Call], jax.Array]


def check_variables(model: nn.Module | nnx.Module, variables: Any) -> None:
    """Checks that variables are given with a Linen model, and with no other.

    Raises:
      ValueError: if it is the other way round.
    """
    if (variables is None) != isinstance(model, nnx.Module):
        raise ValueError(
            "`variables` must be all that `model.apply` takes, and None for an NNX "
            "model."
        )


def nnx_layers(model: nnx.Module, kinds: Kinds = NNX) -> dict[Path, Any]:
    """Layers of an NNX model, by their path; each once, however often it occurs.

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
      ValueError: with the paths of those.
    """
    theirs = sorted("/".join(path) for path in nnx_layers(model, (nnx.BatchNorm,)))
    if theirs:
        raise ValueError(
            f"The moments of {theirs} could not be collected: layers must be those of "
            "`jaxbn.nnx`."
        )


@contextlib.contextmanager
def hooked_linen(hook: Hook, kinds: Kinds = LINEN):
    """Within it, calls of layers of Linen models go through the hook."""

    def intercept(next_function, args, kwargs, context):
        layer = context.module
        if not isinstance(layer, kinds) or context.method_name != "__call__":
            return next_function(*args, **kwargs)
        proceed = functools.partial(next_function, *args, **kwargs)
        return hook(_call(layer, layer.path, proceed, args, kwargs))

    with nn.intercept_methods(intercept):
        yield


def hook_nnx(hook: Hook, model: nnx.Module, kinds: Kinds = NNX) -> None:
    """From now on calls of the layers of this NNX model go through the hook.

    The model is changed; give a copy. Under transformations such as `nnx.jit` the hook
    is called while tracing, as often as it is another hook.
    """
    for path, layer in nnx_layers(model, kinds).items():
        # The attribute is a static part of the layer, and passes transformations.
        layer._hook = functools.partial(_hooked_call, hook, path)
        if not getattr(type(layer), "_has_hook", False):
            object.__setattr__(layer, "__class__", _hooked(type(layer)))


@functools.cache
def _hooked(kind: type) -> type:
    """The class of layers whose calls go through their hook."""

    class Hooked(kind):
        _has_hook = True

        def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
            proceed = functools.partial(super().__call__, *args, **kwargs)
            return self._hook(self, proceed, args, kwargs)

    Hooked.__name__ = kind.__name__
    return Hooked


def _hooked_call(hook: Hook, path: Path, layer, proceed, args, kwargs) -> jax.Array:
    return hook(_call(layer, path, proceed, args, kwargs))


def _call(layer: Any, path: Path, proceed: Any, args: Any, kwargs: Any) -> Call:
    names = ("x", "use_running_average")
    options = dict(zip(names, args, strict=False)) | kwargs
    return Call(layer, path, options.pop("x"), options, proceed)
