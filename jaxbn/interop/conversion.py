"""Conversion between trees of variables and flat names of another package."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Weights = Mapping[str, Any]
Names = Mapping[str, str]
"""The name of each module elsewhere, by its path in the tree, joined by "/"."""


class Format(NamedTuple):
    """The names and the layout of variables in another package."""

    separator: str
    of_norm: Mapping[str, str]
    of_other: Mapping[str, str]
    outputs_first: bool  # Kernels are [O, I, ...] instead of [..., I, O].
    ignored: tuple[str, ...]  # The endings of names without a counterpart.
    also: Mapping[str, str]  # Other names of some modules, taken if `weights` has them.


def converted(form: Format, weights: Weights, template: Any, names: Names) -> Any:
    """Returns the tree with the values of `weights`; see `jaxbn.interop.from_torch`."""
    leaves, structure = _leaves(template)
    keys = _keys(form, leaves, names, weights)
    problems = _check_names(leaves, keys, names)
    values = jax.tree.leaves(template)
    for leaf in leaves:
        key = keys.get(leaf.place)
        value = leaf.value  # A leaf without a key stays as it is.
        if key is not None and key not in weights:
            problems.append(f"`weights` has no {key!r}")
        elif key is not None:
            value = _laid_out(form, leaf, _as_numpy(weights[key]))
            if value.shape != np.shape(leaf.value):
                problems.append(
                    f"{key!r} has the shape {np.shape(weights[key])}, which does not "
                    f"fit {np.shape(leaf.value)} of {leaf.module}/{leaf.name}"
                )
            value = value.astype(leaf.value.dtype)
        values[leaf.place] = value
    used = set(keys.values())
    problems += [
        f"{key!r} of `weights` is not used"
        for key in weights
        if key not in used and not key.endswith(form.ignored)
    ]
    _raise(problems)
    return jax.tree.unflatten(structure, values)


def exported(form: Format, variables: Any, names: Names) -> dict[str, np.ndarray]:
    """Returns the arrays by their names elsewhere; see `jaxbn.interop.to_torch`."""
    leaves, _ = _leaves(variables)
    keys = _keys(form, leaves, names, {})
    problems = _check_names(leaves, keys, names)
    made: dict[str, np.ndarray] = {}
    for leaf in leaves:
        if leaf.place in keys:
            key, value = keys[leaf.place], np.asarray(leaf.value)
            if value.dtype.kind == "V":  # bfloat16 or another dtype that NumPy lacks.
                value = value.astype(np.float32)
            if leaf.name == "kernel" and form.outputs_first:
                value = np.moveaxis(value, (-1, -2), (0, 1))
            if key in made and not np.array_equal(made[key], value, equal_nan=True):
                problems.append(
                    f"{leaf.module}/{leaf.name} would be {key!r}, and so would other "
                    "values; give each module a name of its own"
                )
            made[key] = np.array(value, order="C")
    _raise(problems)
    return made


# A module with one of these is no normalisation. A missing scale does not show this,
# because a normalisation may have a bias alone.
_OF_OTHERS = {"kernel", "embedding"}
# The variables of NNX's random streams.
_OF_STREAMS = ("count", "key")
# The state of estimators beside mean and variance.
_OF_ESTIMATORS = ("weight", "batches", "means", "variances")


class _Leaf(NamedTuple):
    """A leaf of the tree, with its module and its place among all leaves."""

    module: str
    name: str
    place: int
    value: Any


def _leaves(tree: Any) -> tuple[list[_Leaf], Any]:
    """Returns the leaves of modules in any collection, and the tree's structure."""
    with_path, structure = jax.tree_util.tree_flatten_with_path(tree)
    found = []
    for place, (keys, value) in enumerate(with_path):
        path = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        if path[0] in ("params", "batch_stats"):
            path = path[1:]
        if path[-1] == "value":  # A box, such as an NNX variable, holds it.
            path = path[:-1]
        found.append(_Leaf("/".join(path[:-1]), path[-1], place, value))
    streams = {leaf.module for leaf in found if leaf.name in _OF_STREAMS}
    found = [leaf for leaf in found if leaf.module not in streams]
    return found, structure


def _keys(
    form: Format, leaves: list[_Leaf], names: Names, weights: Weights
) -> dict[int, str]:
    """Returns the names elsewhere of the leaves that have one, by their place."""
    others = {leaf.module for leaf in leaves if leaf.name in _OF_OTHERS}
    found = {}
    for leaf in leaves:
        known = form.of_other if leaf.module in others else form.of_norm
        if leaf.module in names and leaf.name in known:
            possible = [
                form.separator.join(filter(None, (names[leaf.module], kind[leaf.name])))
                for kind in (known, form.also)
                if leaf.name in kind
            ]
            given = [key for key in possible if key in weights]
            found[leaf.place] = (given or possible)[0]
    return found


def _check_names(
    leaves: list[_Leaf], keys: Mapping[int, str], names: Names
) -> list[str]:
    modules = {leaf.module for leaf in leaves}
    problems = [
        f"the module {module!r} of the tree has no name in `names`"
        for module in sorted(modules - set(names))
    ]
    problems += [
        f"{leaf.module}/{leaf.name} of the tree has no counterpart"
        for leaf in leaves
        if leaf.module in names
        and leaf.place not in keys
        and leaf.name not in _OF_ESTIMATORS
    ]
    return problems + [
        f"`names` has {module!r}, which is no module of the tree"
        for module in sorted(set(names) - modules)
    ]


def _laid_out(form: Format, leaf: _Leaf, value: np.ndarray) -> np.ndarray:
    if leaf.name == "kernel" and form.outputs_first:
        return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
    one_axis = value.size == max(value.shape, default=1)
    if leaf.name != "kernel" and one_axis and value.size == np.size(leaf.value):
        return value.reshape(np.shape(leaf.value))  # Haiku's arrays have the rank of x.
    return value


def _as_numpy(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()  # A tensor may need a gradient, or be on a GPU.
    if value.is_floating_point():
        value = value.double()  # NumPy knows no bfloat16.
    return value.numpy()


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("The weights do not fit:\n  " + "\n  ".join(problems))
