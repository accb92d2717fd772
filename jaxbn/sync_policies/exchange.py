"""The one collective after a step, in which all workers hear what each has said.

A policy that has messages keeps them in its state: `said`, this worker's, and `heard`,
the sum over all workers of what was said in the last step. The state of all layers of a
model is a tree of such states, in Flax the collection `batch_sync`. What a worker says
is what its forward pass wrote there plus the cotangent of the `said` that it was given,
so that a backward pass can speak too.
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
    """The states of all layers with what all workers said in this step as `heard`.

    One `psum` for all layers, whose result nothing waits for before the next step.
    Where a worker said something that is not finite, its layer hears nothing, and
    `heard` stays as the step wrote it.

    Args:
      batch_sync: the states that the step has written.
      cotangents: of `said_of` the states that it was given; None: no backward pass.
      axis_name: axis or axes of the workers in pmap, shard_map or vmap; without, the
        workers are the first axis of every `said`.

    Returns:
      The same structure, shapes and dtypes.
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
    """What to differentiate by besides the parameters: every layer's `said`, by path.

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
    """The states with `said`, as `said_of` gives it, in its places.

    Example:
      >>> with_said({"bn": {"said": 1.0, "heard": 2.0}}, {"bn": 3.0})
      {'bn': {'said': 3.0, 'heard': 2.0}}
    """

    def put(path: str, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**state, "said": said[path]} if path in said else state

    return _map_layers(put, batch_sync)


def scaled_messages(batch_sync: Any, factor: jax.typing.ArrayLike) -> Any:
    """The states with all sums of backward passes times a factor.

    For a loss that is multiplied by a number which changes from step to step. The
    entries are those named `gradient` and `product`, wherever they stand.
    """

    def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf * factor if name in ("gradient", "product") else leaf

    return jax.tree_util.tree_map_with_path(scale, batch_sync)


def _summed(said: dict[str, Any], axis_name: reduction.AxisName | None) -> Any:
    """Sums over all workers, of one row that holds everything."""
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
    """The tree with every layer's state mapped."""
    if not isinstance(tree, Mapping):
        return tree
    if {"said", "heard"} <= set(tree):
        return type(tree)(function(path, tree))  # pyright: ignore[reportCallIssue]
    made = {
        name: _map_layers(function, part, f"{path}/{name}" if path else str(name))
        for name, part in tree.items()
    }
    return type(tree)(made)  # pyright: ignore[reportCallIssue]
