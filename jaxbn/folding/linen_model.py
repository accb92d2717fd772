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
    model: nn.Module, variables: Mapping[str, Any], example: Any, call: Any, rngs: Any
) -> tuple[Any, Report]:
    """The variables of the folded model, and the report; see `jaxbn.fold`."""
    given = core.unfreeze(core.freeze(dict(variables)))
    layers, left = _layers(model, given, example, call, rngs)
    already = given.get(folded.COLLECTION, {})
    entries = already
    for path, layer in layers.items():
        entries = _with(entries, path, _entry(layer.seen.affine, layer.promoted))
    found = program.fold(
        _run(model, call, rngs),
        {**given, folded.COLLECTION: entries},
        example,
        {
            _join(folded.COLLECTION, path, "scale"): layer.seen
            for path, layer in layers.items()
        },
        lambda name: name.startswith("params/"),
    )
    new, entries, rows = dict(found.tree), already, []
    for row in found.report.layers:
        rows.append(row._replace(into=row.into and row.into.removeprefix("params/")))
    for path, affine in found.affines.items():
        if _join("batch_stats", path, "mean") in found.used:
            left[path] = _IN_A_LOOP  # It runs there as it was.
            continue
        entries = _with(entries, path, _entry(affine, layers[path].promoted))
        for name in ("params", "batch_stats"):
            new[name] = _without(new.get(name, {}), path)
    new[folded.COLLECTION] = entries
    for path in layers.keys() - found.affines.keys():
        read = _join("batch_stats", path, "mean") in found.used
        left[path] = _IN_A_LOOP if read else "nothing uses its output"
    rows = [row for row in rows if row.path not in left]
    rows += [FoldedLayer(path, "left", None, why) for path, why in left.items()]
    kind: Any = type(variables)
    return kind({name: part for name, part in new.items() if part}), Report(tuple(rows))


def _run(model: nn.Module, call: Any, rngs: Any):
    """The model as a function, with what it writes besides parameters."""

    def run(variables: Mapping[str, Any], batch: Any) -> Any:
        fixed = ("params", folded.COLLECTION)
        others = {name: tree for name, tree in variables.items() if name not in fixed}
        made, written = model.apply(
            variables, batch, method=call, mutable=list(others), rngs=rngs
        )
        before = {id(leaf) for leaf in jax.tree.leaves(others)}
        new = [leaf for leaf in jax.tree.leaves(written) if id(leaf) not in before]
        return made, new

    return run


def _join(*names: str) -> str:
    return "/".join(filter(None, names))


_IN_A_LOOP = "it stands in `nn.scan`, `nn.vmap` or another transformation"


def _layers(
    model: nn.Module, given: Mapping[str, Any], example: Any, call: Any, rngs: Any
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
            return model.apply(
                variables, batch, method=call, mutable=mutable, rngs=rngs
            )[0]

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
