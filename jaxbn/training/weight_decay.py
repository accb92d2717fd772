"""The mask of parameters to which weight decay applies."""

from typing import Any

import jax


def weight_decay_mask(params: Any) -> Any:
    """Returns True for every parameter except those named `scale` or `bias`.

    Use it as `optax.add_decayed_weights(rate, mask=weight_decay_mask)`. Decay of a
    scale or a bias only distorts it. Decay of the weights before a normalisation sets
    their effective learning rate.

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
