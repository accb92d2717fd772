"""Folding the variables of a Linen model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import core

from jaxbn import folded, linen, model_layers
from jaxbn import layer as layer_lib
from jaxbn.folding import program
from jaxbn.folding.merging import Affine
from jaxbn.folding.program import Seen
from jaxbn.folding.report import FoldedLayer, Report


class _Layer(NamedTuple):
    seen: Seen
    promoted: Any  # The dtype that its parameters have together; bool without any.


def fold(
    model: nn.Module, variables: Mapping[str, Any], example: Any, call: Any
) -> tuple[dict[str, Any], Report]:
    """The variables of the folded model, and the report; see `jaxbn.fold`."""
    given = core.unfreeze(core.freeze(dict(variables)))
    layers, left = _layers(model, given, example, call)
    already = given.get(folded.COLLECTION, {})
    entries = already
    for path, layer in layers.items():
        entries = _with(entries, path, _entry(layer.seen.affine, layer.promoted))
    found = program.fold(
        lambda variables, batch: model.apply(variables, batch, method=call),
        {**given, folded.COLLECTION: entries},
        example,
        {
            "/".join(filter(None, (folded.COLLECTION, path, "scale"))): layer.seen
            for path, layer in layers.items()
        },
    )
    new, entries = dict(found.tree), already
    for path, affine in found.affines.items():
        entries = _with(entries, path, _entry(affine, layers[path].promoted))
        for name in ("params", "batch_stats"):
            new[name] = _without(new.get(name, {}), path)
    new[folded.COLLECTION] = entries
    hidden = {path: _IN_A_LOOP for path in layers if path not in found.affines}
    rows = [
        row._replace(into=row.into and row.into.removeprefix("params/"))
        for row in found.report.layers
    ]
    for path, why in (left | hidden).items():
        rows.append(FoldedLayer(path, "left", None, why))
    return {name: part for name, part in new.items() if part}, Report(tuple(rows))


_IN_A_LOOP = "it stands in `nn.scan`, `nn.vmap` or another transformation"


def _layers(
    model: nn.Module, given: Mapping[str, Any], example: Any, call: Any
) -> tuple[dict[str, _Layer], dict[str, str]]:
    """The layers that run, by path; and why others cannot be folded."""
    found: dict[str, _Layer] = {}
    left: dict[str, str] = {}

    def note(made: model_layers.Call) -> jax.Array:
        path = "/".join(made.path)
        if isinstance(made.layer, nn.BatchNorm):
            left[path] = "it is Flax's; import `BatchNorm` from `jaxbn.linen`"
            return made.proceed()
        stats, params = (
            _at(given.get(name, {}), path) for name in ("batch_stats", "params")
        )
        inner = nn.meta.unbox(made.layer.get_variable("batch_stats", "mean"))
        if inner is not None and inner.shape == jnp.shape(stats.get("mean", ())):
            found[path] = _layer(made.layer, path, stats, params)
        elif inner is not None:
            left[path] = _IN_A_LOOP
        return made.proceed()

    def run(variables, batch):
        # Of a model in training mode the next run complains, in words of its own.
        mutable = core.DenyList("params")
        with model_layers.hooked_linen(note):
            return model.apply(variables, batch, method=call, mutable=mutable)[0]

    jax.eval_shape(run, given, example)
    return found, left


def _layer(module: linen.BatchNorm, path: str, stats, params) -> _Layer:
    kind = layer_lib.state_type(module)
    state = kind(*(stats[name] for name in kind._fields))
    scale, bias = (params.get(name) for name in ("scale", "bias"))
    affine = program.affine_of(
        layer_lib.estimator(module).estimate(state), scale, bias, module.epsilon
    )
    dtypes = [part.dtype for part in (scale, bias) if part is not None]
    promoted = jnp.result_type(*dtypes) if dtypes else jnp.dtype(bool)
    return _Layer(Seen(path, module.axis, module.activation, affine), promoted)


def _entry(affine: Affine, promoted: Any) -> dict[str, jax.Array]:
    """What the collection holds of a layer."""
    parts = {"scale": affine.scale, "bias": affine.shift}
    entry = {
        name: jnp.asarray(part) for name, part in parts.items() if part is not None
    }
    # Without it the dtype of the result could be another one.
    return {**entry, "dtype": jnp.zeros(0, promoted)}


def _at(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The variables of a layer, out of their boxes."""
    for name in filter(None, path.split("/")):
        tree = tree.get(name, {})
    return nn.meta.unbox(dict(tree))


def _with(tree: Mapping[str, Any], path: str, entry: dict[str, Any]) -> dict[str, Any]:
    if not path:
        return {**tree, **entry}
    name, _, rest = path.partition("/")
    return {**tree, name: _with(tree.get(name, {}), rest, entry)}


def _without(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The tree without a layer, and without what only led to it."""
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
