"""Walks over all pairs of running mean and variance in a tree of variables.

A pair has the names `mean` and `var` side by side, in any container that JAX knows:
`BatchStats`, dict, FrozenDict, list, tuple or an NNX state. Its values may be boxed.
The state of a layer consists of its pair and the other arrays that an estimator keeps
beside the pair. What a policy of synchronisation remembers is not part of it.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxbn.core import running

Path = tuple[str, ...]

# Parameters beside a pair in the state of an NNX model, and in a dict made of it.
_PARAMETERS = ("scale", "bias")


def pairs(tree: Any) -> dict[Path, running.BatchStats]:
    """Returns every pair, by the path of the layer that holds it.

    Example:
      >>> list(pairs({"block": [{"mean": 0.0, "var": 1.0}], "step": 3}))
      [('block', '0')]
    """
    leaves = jax.tree.leaves(tree)
    return {
        path: running.BatchStats(leaves[names["mean"]], leaves[names["var"]])
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


def _states(tree: Any) -> dict[Path, dict[str, int]]:
    """Returns the positions of every layer's state among the leaves."""
    found: dict[Path, dict[str, int]] = {}
    others = _leaves_of_other_variables(tree)
    for place, (keys, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        if place in others or any("batch_sync" in str(key) for key in keys):
            continue
        path = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
        if path and path[-1] == "value":  # It is in a box, such as an NNX variable.
            path = path[:-1]
        if path and path[-1] not in _PARAMETERS:
            found.setdefault(path[:-1], {})[path[-1]] = place
    pair = set(running.BatchStats._fields)
    return {path: names for path, names in found.items() if pair <= set(names)}


def _leaves_of_other_variables(tree: Any) -> set[int]:
    """Returns the positions of leaves of NNX variables that are not `BatchStat`."""
    from flax import nnx  # Imported here: `import jaxbn` needs no Flax.

    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    found, place = set(), 0
    for node in nodes:
        size = len(jax.tree.leaves(node))
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.BatchStat):
            found |= set(range(place, place + size))
        place += size
    return found
