"""Masks of parameters for optax, by the role that a parameter has in its layer."""

from collections.abc import Callable
from typing import Any

import jax

from jaxbn.models import _batch_stats_by_path, _layers_by_path
from jaxbn.models._layers_by_path import Where


def weight_decay_mask(params: Any) -> Any:
    """Returns True for every parameter except those named `scale` or `bias`.

    Use it as `optax.add_decayed_weights(rate, mask=weight_decay_mask)`. Decay of a
    scale or a bias only distorts it. Decay of the weights before a normalisation sets
    their effective learning rate.

    Args:
      params: the parameters of a Linen or NNX model, of any shapes and dtypes.

    Returns:
      The same tree, with a bool in the place of every parameter.

    Example:
      >>> weight_decay_mask({"kernel": 1.0, "bias": 0.0, "bn": {"scale": 1.0}})
      {'bias': False, 'bn': {'scale': False}, 'kernel': True}
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        # Boxes such as those of `nn.with_partitioning` add keys below the name, but
        # these are no dictionary keys.
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return not names or names[-1] not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)


def frozen_mask(
    batch_stats: Any, where: Where = None, *, scale: bool = True, bias: bool = True
) -> Callable[[Any], Any]:
    """Returns a mask of the scale and the bias of frozen layers, for `optax.masked`.

    `jaxbn.freeze` stops their gradients, but weight decay and momentum can still change
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
      frozen ones. It raises a `ValueError` if there are none.

    Raises:
      ValueError: if `where` matches no layer.

    Example:
      >>> mask = frozen_mask({"bn": {"mean": 0.0, "var": 1.0}}, bias=False)
      >>> mask({"bn": {"scale": 1.0, "bias": 0.0}, "head": {"bias": 0.0}})
      {'bn': {'bias': False, 'scale': True}, 'head': {'bias': False}}
    """
    paths = ["/".join(path) for path in _batch_stats_by_path.pairs(batch_stats)]
    frozen = list(filter(_layers_by_path.as_predicate(where), paths))
    _layers_by_path.check_any(where, frozen, paths)
    chosen = {"scale": scale, "bias": bias}

    def is_frozen(keys: tuple[Any, ...], _: Any) -> bool:
        path = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        path = path[:-1] if path[-1] == "value" else path  # A box holds it.
        return "/".join(path[:-1]) in frozen and chosen.get(path[-1], False)

    def mask(params: Any) -> Any:
        made = jax.tree_util.tree_map_with_path(is_frozen, params)
        if not any(jax.tree.leaves(made)):
            raise ValueError(
                f"`params` must hold a scale or a bias of the layers {frozen}, got "
                "none; give the collection 'params' itself."
            )
        return made

    return mask
