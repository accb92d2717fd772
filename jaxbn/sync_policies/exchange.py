"""The one collective after a step, which exchanges the messages of all layers.

A policy with messages keeps them in its state. `said` is the message that this worker
sends, and `heard` is the sum of the messages that all workers sent in the last step.
The states of all layers of a model form a tree; in Flax it is the collection
`batch_sync`. A worker sends what its forward pass wrote to `said`, plus the cotangent
of the `said` that it was given. In this way a backward pass can send sums too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn.core import reduction

NAME = "batch_sync"


def exchange(
    batch_sync: Any,
    cotangents: Any = None,
    *,
    axis_name: reduction.AxisName | None = None,
) -> Any:
    """Sums the messages of all workers, and returns the states with them as `heard`.

    One `psum` serves all layers. No computation waits for its result before the next
    step. If the sums of a layer are not finite, it receives no message, and its `heard`
    stays as the step wrote it.

    Args:
      batch_sync: the states that the step has written.
      cotangents: cotangents of the `said` that the step was given, in the form of
        `said_of`. None if there was no backward pass.
      axis_name: axis or axes of the workers in pmap, shard_map or vmap. Without it the
        workers are the first axis of every `said`.

    Returns:
      The new states, with the structure, shapes and dtypes of `batch_sync`.
    """
    total = said_of(batch_sync)
    if cotangents is not None:
        total = jax.tree.map(jnp.add, total, cotangents)
    heard = _summed(total, axis_name)

    def tell(path: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        said, sums = total[path], heard[path]
        finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in sums.values()])
        finite = jnp.all(finite)
        said = {name: jnp.where(finite, leaf, 0) for name, leaf in said.items()}
        sums = {
            name: jnp.where(finite, leaf, state["heard"][name])
            for name, leaf in sums.items()
        }
        return {**state, "said": said, "heard": sums}

    return _map_layers(tell, batch_sync)


def said_of(batch_sync: Any) -> dict[str, Any]:
    """Returns the `said` of every layer, by path.

    A loss is differentiated with respect to them as well as to the parameters.

    Example:
      >>> said_of({"bn": {"said": {"count": 1.0}, "heard": {"count": 8.0}}})
      {'bn': {'count': 1.0}}
    """
    found = {}

    def note(path: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        found[path] = dict(state["said"])
        return state

    _map_layers(note, batch_sync)
    return found


def with_said(batch_sync: Any, said: Mapping[str, Any]) -> Any:
    """Returns the states with `said` replaced by that of `said_of`.

    Example:
      >>> with_said({"bn": {"said": 1.0, "heard": 2.0}}, {"bn": 3.0})
      {'bn': {'said': 3.0, 'heard': 2.0}}
    """

    def put(path: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**state, "said": said[path]} if path in said else state

    return _map_layers(put, batch_sync)


def scaled_messages(batch_sync: Any, factor: jax.typing.ArrayLike) -> Any:
    """Multiplies all sums of backward passes in the states by a factor.

    This is for a loss whose scale changes from step to step. The sums are all entries
    named `gradient` and `product`.
    """

    def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf * factor if name in ("gradient", "product") else leaf

    return jax.tree_util.tree_map_with_path(scale, batch_sync)


def _summed(said: dict[str, Any], axis_name: reduction.AxisName | None) -> Any:
    """Returns the sums over all workers, with one collective per dtype."""
    leaves, structure = jax.tree.flatten(said)
    rows: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        rows.setdefault((leaf.shape[0], leaf.dtype), []).append(place)
    sums: list[Any] = [None] * len(leaves)
    for (workers, _), places in rows.items():
        row = jnp.concatenate([leaves[p].reshape(workers, -1) for p in places], 1)
        row = jnp.sum(row, 0)
        row = row if axis_name is None else jax.lax.psum(row, axis_name)
        start = 0
        for place in places:
            shape = leaves[place].shape[1:]
            size = leaves[place].size // workers
            sums[place] = row[start : start + size].reshape(shape)
            start += size
    return jax.tree.unflatten(structure, sums)


def _map_layers(
    function: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
    tree: Any,
    path: str = "",
) -> Any:
    """Returns the tree with the function applied to the state of every layer."""
    if not isinstance(tree, Mapping):
        return tree
    if {"said", "heard"} <= set(tree):
        return type(tree)(function(path, tree))  # pyright: ignore[reportCallIssue]
    made = {
        name: _map_layers(function, part, f"{path}/{name}" if path else str(name))
        for name, part in tree.items()
    }
    return type(tree)(made)  # pyright: ignore[reportCallIssue]
