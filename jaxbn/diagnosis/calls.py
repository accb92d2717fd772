"""The inputs of every layer of a model when a batch runs through it."""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.core
import jax.numpy as jnp
from flax import nnx

from jaxbn import layer as layer_lib
from jaxbn import model_layers
from jaxbn.core import running
from jaxbn.model_layers import Call


class Given(NamedTuple):
    """One call of one layer."""

    path: str
    call: int  # 1 for the first call of this layer.
    x: jax.Array
    mask: jax.Array | None  # the shape of `x`
    running: running.BatchStats  # The statistics that inference would use.
    scale: jax.Array | None
    bias: jax.Array | None
    axis: Any
    epsilon: float


Visit = Callable[[Given], None]
"""A function that gets each call when it is made.

Calls are not kept, because all inputs together are large.
"""


def of_linen(
    model: nn.Module,
    variables: Any,
    batch: Any,
    call: Callable,
    rngs: Any,
    visit: Visit,
) -> None:
    """Visits the calls of a Linen model, in their order."""

    def read(layer: Any, collection: str, name: str) -> Any:
        return nn.meta.unbox(layer.get_variable(collection, name))

    notes = _Notes(read, visit)

    def run(bound: Any, batch: Any) -> None:
        with model_layers.hooked_linen(notes.take):
            call(bound, batch)

    model.apply(
        variables, batch, method=run, mutable=flax.core.DenyList("params"), rngs=rngs
    )


def of_nnx(model: nnx.Module, batch: Any, call: Callable, visit: Visit) -> None:
    """Visits the calls of a copy of an NNX model, in their order."""

    def read(layer: Any, collection: str, name: str) -> Any:
        variable = getattr(layer, name)
        return None if variable is None else variable[...]

    notes = _Notes(read, visit)
    copy = nnx.clone(model)
    copy.train()
    model_layers.hook_nnx(notes.take, copy)
    call(copy, batch)


class _Notes:
    """Passes every call to `visit`, before it moves the running statistics."""

    def __init__(self, read: Callable[[Any, str, str], Any], visit: Visit):
        self.read, self.visit = read, visit
        self.numbers: collections.Counter[str] = collections.Counter()
        self.running: dict[str, running.BatchStats] = {}  # As before the first call.

    def take(self, call: Call) -> jax.Array:
        """Visits one call and makes it; this is the hook of the layers."""
        layer = call.layer
        path = "/".join(call.path) or getattr(layer, "name", None)
        path = path or type(layer).__name__
        x = jnp.asarray(call.x)
        mask = call.options.get("mask")
        if isinstance(x, jax.core.Tracer):
            raise ValueError(
                "`model` must call its layers outside of `jit`, `scan` and `vmap`, got "
                f"a traced input of {path!r}."
            )
        if path not in self.running:
            self.running[path] = self._running(layer)
        self.numbers[path] += 1
        self.visit(
            Given(
                path=path,
                call=self.numbers[path],
                x=x,
                mask=None if mask is None else _as_mask(mask, x),
                running=self.running[path],
                scale=self.read(layer, "params", "scale"),
                bias=self.read(layer, "params", "bias"),
                axis=layer.axis,
                epsilon=layer.epsilon,
            )
        )
        return call.proceed()

    def _running(self, layer: Any) -> running.BatchStats:
        ours = model_layers.is_ours(layer)
        kind = layer_lib.state_type(layer) if ours else running.BatchStats
        state = kind(*(self.read(layer, "batch_stats", each) for each in kind._fields))
        return layer_lib.estimator(layer).estimate(state) if ours else state


def _as_mask(mask: Any, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(mask, bool), x.shape)
