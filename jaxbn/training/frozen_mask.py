"""The mask of parameters that an optimiser must not change."""

from collections.abc import Callable
from typing import Any

import jax

from jaxbn import selection, stats_tree
from jaxbn.selection import Where


def frozen_mask(
    batch_stats: Any, where: Where = None, *, scale: bool = True, bias: bool = True
) -> Callable[[Any], Any]:
    """Returns a mask of the scale and the bias of frozen layers, for `optax.masked`.

    `jaxbn.freeze` stops their gradients, but weight decay and momentum could still move
    them. For Linen and NNX write
    `optax.chain(tx, optax.masked(optax.set_to_zero(), frozen_mask(...)))`.

    Args:
      batch_stats: the collection of a Linen model, or
        `nnx.state(model, nnx.BatchStat)`. Every module with running statistics is a
        layer.
      where: the frozen layers, as given to `jaxbn.freeze`.
      scale: True if their scale is frozen.
      bias: True if their bias is frozen.

    Returns:
      A function that takes the parameters and returns the same tree, with True for the
      frozen ones.

    Raises:
      ValueError: if `where` matches no layer.

    Example:
      >>> mask = frozen_mask({"bn": {"mean": 0.0, "var": 1.0}}, bias=False)
      >>> mask({"bn": {"scale": 1.0, "bias": 0.0}, "head": {"bias": 0.0}})
      {'bn': {'bias': False, 'scale': True}, 'head': {'bias': False}}
    """
    paths = ["/".join(path) for path in stats_tree.pairs(batch_stats)]
    meant = list(filter(selection.as_predicate(where), paths))
    selection.check_any(where, meant, paths)
    given = {"scale": scale, "bias": bias}

    def is_frozen(keys: tuple[Any, ...], _: Any) -> bool:
        path = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        path = path[:-1] if path[-1] == "value" else path  # It is in a box.
        return "/".join(path[:-1]) in meant and given.get(path[-1], False)

    def mask(params: Any) -> Any:
        made = jax.tree_util.tree_map_with_path(is_frozen, params)
        if not any(jax.tree.leaves(made)):
            raise ValueError(
                f"`params` must hold a scale or a bias of the layers {meant}, got "
                "none; give the collection 'params' itself."
            )
        return made

    return mask
