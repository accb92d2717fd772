"""The running statistics of all layers in a tree of variables.

A pair has the names `mean` and `var` side by side, in any container that JAX knows:
`BatchStats`, dict, FrozenDict, list, tuple or an NNX state. Its values may be boxed.
The state of a layer consists of its pair and the other arrays that an estimator or a
variant keeps beside the pair. The state of a policy is not part of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Parameters beside a pair in the state of an NNX model, and in a dict made of it.
_PARAMETERS = ("scale", "bias")
# The fields of `BatchStats` with the arrays that an estimator or a variant keeps.
_BESIDE_A_PAIR = tuple(map(jax.tree_util.GetAttrKey, ("extra", "variant")))


def reset_batch_stats(tree: Any) -> Any:
    """Returns the running statistics of all layers as they are before the first batch.

    Means become 0 and variances 1. Other arrays of an estimator become 0.

    Args:
      tree: `BatchStats`, or a tree of variables in which every layer has the names
        `mean` and `var` side by side, such as the state of an NNX model. Other leaves
        stay as they are, including `scale` and `bias` of a layer.

    Returns:
      A tree of the same structure, shapes, dtypes and shardings.

    Example:
      >>> reset_batch_stats({"bn": {"mean": jnp.ones(1), "var": jnp.ones(1) * 3}})
      {'bn': {'mean': Array([0.], dtype=float32), 'var': Array([1.], dtype=float32)}}
    """

    def reset(state: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            name: jnp.ones_like(leaf) if name == "var" else jnp.zeros_like(leaf)
            for name, leaf in state.items()
        }

    return map_states(reset, tree)


def pairs(tree: Any) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """Returns every pair of mean and variance, by the path of the layer.

    Example:
      >>> list(pairs({"block": [{"mean": 0.0, "var": 1.0}], "step": 3}))
      [('block', '0')]
    """
    leaves = jax.tree.leaves(tree)
    return {
        path: (leaves[names["mean"]], leaves[names["var"]])
        for path, names in _states(tree).items()
    }


def map_states(
    function: Callable[[dict[str, jax.Array]], dict[str, jax.Array]], tree: Any
) -> Any:
    """Returns the tree with the state of every layer mapped by a function.

    The state includes what an estimator keeps beside a pair. It does not include the
    parameters that an NNX model has beside a pair.

    Example:
      >>> double = lambda state: {name: 2 * leaf for name, leaf in state.items()}
      >>> map_states(double, {"bn": {"mean": 1, "var": 1, "weight": 2}, "step": 3})
      {'bn': {'mean': 2, 'var': 2, 'weight': 4}, 'step': 3}
    """
    leaves, structure = jax.tree.flatten(tree)
    for names in _states(tree).values():
        made = function({name: leaves[place] for name, place in names.items()})
        for name, place in names.items():
            leaves[place] = made[name]
    return jax.tree.unflatten(structure, leaves)


def _states(tree: Any) -> dict[tuple[str, ...], dict[str, int]]:
    """Returns the positions of every layer's state among the leaves."""
    found: dict[tuple[str, ...], dict[str, int]] = {}
    others = _leaves_of_other_variables(tree)
    for place, (keys, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        if place in others or any(map(_is_of_policy, keys)):
            continue
        # These arrays belong to the layer, as its mean and variance do.
        names = [key for key in keys if key not in _BESIDE_A_PAIR]
        path = tuple(jax.tree_util.keystr((key,), simple=True) for key in names)
        if path and path[-1] == "value":  # A box, such as an NNX variable, holds it.
            path = path[:-1]
        if path and path[-1] not in _PARAMETERS:
            found.setdefault(path[:-1], {})[path[-1]] = place
    return {
        path: names for path, names in found.items() if {"mean", "var"} <= set(names)
    }


def _is_of_policy(key: Any) -> bool:
    return "batch_sync" in str(key) or key == jax.tree_util.GetAttrKey("sync")


def _leaves_of_other_variables(tree: Any) -> set[int]:
    """Returns the positions of leaves of NNX variables that are not `BatchStat`."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    found, place = set(), 0
    for node in nodes:
        size = len(jax.tree.leaves(node))
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.BatchStat):
            found |= set(range(place, place + size))
        place += size
    return found
