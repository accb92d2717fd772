"""Folding of the variables of a Linen model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import core

from jaxbn import linen
from jaxbn._core import arguments
from jaxbn._layers import accumulation, folded, switches
from jaxbn._layers import call as call_lib
from jaxbn.models import _freeze, _hooks, _layers_by_path
from jaxbn.models._fold import merge
from jaxbn.models._fold.merge import Affine, FoldedLayer, LayerInModel, Report

# Collections that `call` reads and does not write in evaluation.
_FIXED = (
    "params",
    "batch_stats",
    accumulation.NAME,
    linen.SYNC,
    folded.COLLECTION,
)
_IN_A_LOOP = "it is inside `nn.scan`, `nn.vmap` or another transformation"


class _LinenLayer(NamedTuple):
    """A layer that `call` runs, and the variables that belong to it."""

    seen: LayerInModel
    promoted: Any  # The common dtype of its parameters; bool if it has none.
    variables: tuple[tuple[str, str], ...]  # The collection and the name of each.
    why_read: str  # Why it is left if the model reads these variables itself.


def fold_linen(
    model: nn.Module, variables: Mapping[str, Any], example: Any, call: Any, rngs: Any
) -> tuple[Any, Report]:
    """Returns the variables of the folded model, and the report; see `jaxbn.fold`."""
    given = core.unfreeze(core.freeze(dict(variables)))
    layers, left = _layers_of(model, given, example, call, rngs)

    def folded_without(left: Mapping[str, str]) -> merge.FoldedArrays:
        entries = given.get(folded.COLLECTION, {})
        some = {path: layer for path, layer in layers.items() if path not in left}
        for path, layer in some.items():
            entries = _with(entries, path, _entry(layer.seen.affine, layer.promoted))
        return merge.fold_arrays(
            _run(model, call, rngs),
            {**given, folded.COLLECTION: entries},
            example,
            {
                _join(folded.COLLECTION, path, "scale"): layer.seen
                for path, layer in some.items()
            },
            lambda name: name.startswith("params/"),
        )

    found = folded_without(left)
    read = {
        path: layer.why_read
        for path, layer in layers.items()
        if any(
            _join(where, path, name) in found.used for where, name in layer.variables
        )
    }
    left |= read
    if read:  # These layers stay, so no kernel may contain their scales.
        found = folded_without(left)
    new, entries, rows = dict(found.tree), given.get(folded.COLLECTION, {}), []
    for row in found.report.layers:
        rows.append(row._replace(into=row.into and row.into.removeprefix("params/")))
    for path, affine in found.affines.items():
        entries = _with(entries, path, _entry(affine, layers[path].promoted))
        for where, name in layers[path].variables:
            new[where] = _without(new.get(where, {}), _join(path, name))
    new[folded.COLLECTION] = entries
    for path in layers:
        if path not in found.affines and path not in left:
            left[path] = "nothing uses its output"
    rows += [FoldedLayer(path, "left", None, why) for path, why in left.items()]
    kind: Any = type(variables)
    return kind({name: part for name, part in new.items() if part}), Report(tuple(rows))


def _run(model: nn.Module, call: Any, rngs: Any):
    """Returns the model as a function, which also returns what the model writes.

    `batch_stats` is not mutable, because a model may train if it is.
    """

    def run(variables: Mapping[str, Any], batch: Any) -> Any:
        others = {name: tree for name, tree in variables.items() if name not in _FIXED}
        outputs, written = model.apply(
            variables, batch, method=call, mutable=list(others), rngs=rngs
        )
        before = {id(leaf) for leaf in jax.tree.leaves(others)}
        new = [leaf for leaf in jax.tree.leaves(written) if id(leaf) not in before]
        return outputs, new

    return run


def _layers_of(
    model: nn.Module, given: Mapping[str, Any], example: Any, call: Any, rngs: Any
) -> tuple[dict[str, _LinenLayer], dict[str, str]]:
    """Returns the layers that run, by path, and why others cannot be folded."""
    found: dict[str, _LinenLayer] = {}
    left: dict[str, str] = {}

    def note(layer_call: _hooks.LayerCall) -> jax.Array:
        path = "/".join(layer_call.path)
        _check_evaluation(layer_call, path)
        if _layers_by_path.is_flax(layer_call.layer):
            left[path] = "it is Flax's; import `BatchNorm` from `jaxbn.linen`"
            return layer_call.proceed()
        if arguments.infers(layer_call.layer.variant):
            left[path] = merge.NOT_CONSTANT
            return layer_call.proceed()
        stats, params = (
            _at(given.get(name, {}), path) for name in ("batch_stats", "params")
        )
        inner = nn.meta.unbox(layer_call.layer.get_variable("batch_stats", "mean"))
        if inner is not None and inner.shape == np.shape(stats.get("mean", ())):
            found[path] = _linen_layer(layer_call.layer, path, stats, params)
        elif inner is not None:
            left[path] = _IN_A_LOOP
        return layer_call.proceed()

    with _hooks.hooked_linen(note):
        jax.eval_shape(_run(model, call, rngs), given, example)
    return found, left


def _check_evaluation(layer_call: _hooks.LayerCall, path: str) -> None:
    """Checks that a call neither normalises by the batch nor updates statistics.

    Raises:
      ValueError: with the path of the layer.
    """
    layer, options = layer_call.layer, layer_call.options
    evaluates = nn.merge_param(
        "use_running_average",
        layer.use_running_average,
        options.get("use_running_average"),
    )
    if _layers_by_path.is_ours(layer):
        on = switches.switches(
            layer,
            evaluates,
            options.get("update_running_average"),
            _freeze.frozen_now(path),
        )
        evaluates = on.use_running_average and not on.update_running_average
    if not evaluates:
        raise ValueError(
            f"`call` must run the model in evaluation mode, got layer {path!r} in "
            "training mode; give for instance `lambda model, x: model(x, train=False)`."
        )


def _linen_layer(module: linen.BatchNorm, path: str, stats, params) -> _LinenLayer:
    scale, bias = (params.get(name) for name in ("scale", "bias"))
    affine = merge.affine_of(stats["mean"], stats["var"], scale, bias, module.epsilon)
    dtypes = [part.dtype for part in (scale, bias) if part is not None]
    promoted = jnp.result_type(*dtypes) if dtypes else jnp.dtype(bool)
    seen = LayerInModel(path, module.axis, affine)
    names = [("params", name) for name in ("scale", "bias")]
    state = call_lib.init_batch_stats(module, (1,), jnp.dtype(jnp.float32))
    stats = ("mean", "var", *state.extra, *state.variant)
    names += [("batch_stats", name) for name in stats]
    why = _IN_A_LOOP
    if type(module).__call__ is not linen.BatchNorm.__call__:
        why = f"`{type(module).__name__}` reads its variables itself, or {why}"
    return _LinenLayer(seen, promoted, tuple(names), why)


def _entry(affine: Affine, promoted: Any) -> dict[str, jax.Array]:
    """Returns the variables of a layer in the collection `folded`."""
    parts = {"scale": affine.scale, "bias": affine.shift}
    entry = {
        name: jnp.asarray(part) for name, part in parts.items() if part is not None
    }
    # Without this entry the result could have another dtype.
    return {**entry, "dtype": jnp.zeros(0, promoted)}


def _at(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns the variables of a layer, without their boxes."""
    for name in filter(None, path.split("/")):
        tree = tree.get(name, {})
    return nn.meta.unbox(dict(tree))


def _with(tree: Mapping[str, Any], path: str, entry: dict[str, Any]) -> dict[str, Any]:
    if not path:
        return {**tree, **entry}
    name, _, rest = path.partition("/")
    return {**tree, name: _with(tree.get(name, {}), rest, entry)}


def _without(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns the tree without a layer, and without parts that this leaves empty."""
    if not path:
        return {}
    name, _, rest = path.partition("/")
    if name not in tree:
        return dict(tree)
    inner = _without(tree[name], rest)
    return {
        key: inner if key == name else part
        for key, part in tree.items()
        if key != name or inner
    }


def _join(*names: str) -> str:
    return "/".join(filter(None, names))
