"""One interface to Linen and NNX models: it returns the moments of every layer.

It also writes new running statistics. Each layer has a flag, a boolean array, that
makes it normalise by its running statistics although the model is in training mode. So
one compiled program serves the passes of all layers.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import linen, model_layers, moments_collection, nnx_variables, switches
from jaxbn import nnx as jaxbn_nnx
from jaxbn.core import moments as moments_lib
from jaxbn.core import running
from jaxbn.model_layers import Call, Path

Moments = dict[Path, moments_lib.Moments]
Replace = Callable[[running.BatchStats, moments_lib.Moments], running.BatchStats]
_FLAG = "evaluate"
_NUMBERS = itertools.count()


def _choose(call: Call, flag: jax.Array | None, evaluate) -> jax.Array:
    """Returns the output of training or evaluation, as the flag of the layer asks.

    The flags of all layers under one scan are equal.
    """
    trained = call.proceed()
    return trained if flag is None else jnp.where(flag.ravel()[0], evaluate(), trained)


class Linen(NamedTuple):
    """A Linen model, whose methods take the variables."""

    model: nn.Module
    call: Callable[[Any, Any], Any]
    rngs: Any

    def moments(
        self, variables: Mapping[str, Any], batch: Any, flags: Mapping[Path, jax.Array]
    ) -> Moments:
        """Returns the moments of every layer that would move its statistics."""
        with model_layers.hooked_linen(_evaluate_linen, (linen.BatchNorm,)):
            return self._moments(variables, batch, flags)

    def order(self, variables: Mapping[str, Any], batch: Any) -> tuple[Path, ...]:
        """Returns the paths of all layers, in the order of their first calls."""
        paths: dict[Path, None] = {}

        def note(call: Call) -> jax.Array:
            paths[call.path] = None
            return call.proceed()

        def run(variables: Any, batch: Any) -> Moments:
            with model_layers.hooked_linen(note, (linen.BatchNorm,)):
                # The name of this collection is new, so that `nn.jit` traces again.
                return self._moments(variables, batch, {}, f"order {next(_NUMBERS)}")

        jax.eval_shape(run, variables, batch)
        return tuple(paths)

    def replaced(
        self, variables: Mapping[str, Any], totals: Moments, replace: Replace
    ) -> Any:
        """Returns the variables with mean and variance of these layers replaced."""
        stats = variables["batch_stats"]
        for path, total in totals.items():
            stats = _replaced(stats, path, path, total, replace)
        kind: Any = type(variables)
        return kind({**variables, "batch_stats": stats})

    def _moments(self, variables, batch, flags, *mutable: str) -> Moments:
        name = moments_collection.NAME
        given = {each: tree for each, tree in variables.items() if each != name}
        others = [each for each in given if each != "params"]
        none = moments_collection.init_batch_moments(given.get("batch_stats", {}))
        given[name] = _with_flags(none, flags)
        # Other collections that the model writes are dropped.
        with model_layers.every_layer_collects():
            _, written = self.model.apply(
                given,
                batch,
                method=self.call,
                mutable=[name, *others, *mutable],
                rngs=self.rngs,
            )
        return moments_collection.moments_of(written.get(name, {}))


def _evaluate_linen(call: Call) -> jax.Array:
    layer = call.layer

    def evaluate() -> jax.Array:
        # This is another layer with the same variables.
        alone = layer.clone(parent=None, name=None, use_running_average=None)
        given = {name: tree for name, tree in layer.variables.items()}
        given.pop(moments_collection.NAME)
        # A subclass may have a call of its own.
        options = {"method": linen.BatchNorm.__call__, **_residual(call)}
        return alone.apply(given, call.x, use_running_average=True, **options)

    return _choose(call, layer.get_variable(moments_collection.NAME, _FLAG), evaluate)


def _residual(call: Call) -> dict[str, Any]:
    given = call.options.get("residual")
    return {} if given is None else {"residual": given}


def _with_flags(
    batch_moments: dict[str, Any], flags: Mapping[Path, jax.Array]
) -> dict[str, Any]:
    """Returns the collection with the flag of each layer among its variables."""
    for path, flag in flags.items():
        inner = batch_moments
        for name in path:
            inner = inner[name]
        inner[_FLAG] = flag
    return batch_moments


def _replaced(
    tree: Any, layer: Path, path: Path, total: moments_lib.Moments, replace: Replace
) -> Any:
    """Returns the collection with mean and variance of one layer replaced.

    Args:
      tree: the collection, or a part of it.
      layer: the path of the layer.
      path: the path from the part of the collection to the layer.
      total: the moments of all batches.
      replace: a function that computes statistics from them.
    """
    if path:
        inner = _replaced(tree[path[0]], layer, path[1:], total, replace)
        return type(tree)({**tree, path[0]: inner})
    old = running.BatchStats(tree["mean"], tree["var"])
    moments_collection.check_shapes("/".join(layer), total.mean, old.mean)
    return type(tree)({**tree, **replace(old, total)._asdict()})


class Nnx(NamedTuple):
    """An NNX model without its state, which its methods take."""

    graph: Any
    call: Callable[[Any, Any], Any]

    def moments(
        self, state: Any, batch: Any, flags: Mapping[Path, jax.Array]
    ) -> Moments:
        """Returns the moments of every layer that would move its statistics."""
        model, layers = self._model(state)
        model_layers.hook_nnx(_evaluate_nnx, model, (jaxbn_nnx.BatchNorm,))
        for path, layer in layers.items():
            layer.collect()
            if flags:
                layer.evaluate = nnx.Variable(flags[path])
        self.call(model, batch)
        collected = {path: each.collected.get_value() for path, each in layers.items()}
        return {path: each.moments for path, each in collected.items()}

    def order(self, state: Any, batch: Any) -> tuple[Path, ...]:
        """Returns the paths of all layers, in the order of their first calls."""
        paths: dict[Path, None] = {}

        def note(call: Call) -> jax.Array:
            paths[call.path] = None
            return call.proceed()

        def run(state: Any, batch: Any) -> None:
            model, _ = self._model(state)
            model_layers.hook_nnx(note, model, (jaxbn_nnx.BatchNorm,))
            self.call(model, batch)

        jax.eval_shape(run, state, batch)
        return tuple(paths)

    def replaced(self, state: Any, totals: Moments, replace: Replace) -> Any:
        """Returns the state with mean and variance of these layers replaced."""
        model, layers = self._model(state)
        for path, total in totals.items():
            norm = layers[path]
            old = running.BatchStats(norm.mean[...], norm.var[...])
            nnx_variables.write(norm, replace(old, total))
        return nnx.state(model)

    def _model(self, state: Any) -> tuple[nnx.Module, dict[Path, Any]]:
        """Returns a model in training mode, and its layers that may move."""
        model = nnx.merge(self.graph, state, copy=True)
        model.train()
        model_layers.check_collectable(model)
        layers = model_layers.nnx_layers(model, (jaxbn_nnx.BatchNorm,))
        moving = {
            path: layer
            for path, layer in layers.items()
            if layer.update_running_average is not False
        }
        return model, moving


def _evaluate_nnx(call: Call) -> jax.Array:
    layer = call.layer
    flag = getattr(layer, _FLAG, None)

    def evaluate() -> jax.Array:
        frozen = layer.frozen
        layer.frozen = switches.Frozen(statistics=True, updates=True)
        try:
            # This call bypasses the hook and the calls of subclasses.
            return jaxbn_nnx.BatchNorm.__call__(layer, call.x, **_residual(call))
        finally:
            layer.frozen = frozen

    return _choose(call, None if flag is None else flag[...], evaluate)
