"""Which parameters weight decay is for."""

from typing import Any

import jax


def weight_decay_mask(params: Any) -> Any:
    """True for every parameter but those named `scale` or `bias`.

    For `optax.add_decayed_weights(rate, mask=weight_decay_mask)`: decay of a scale or a
    bias only distorts it, decay of weights before a normalisation sets their effective
    learning rate.

    Example:
      >>> weight_decay_mask({"kernel": 1.0, "bias": 0.0, "bn": {"scale": 1.0}})
      {'bias': False, 'bn': {'scale': False}, 'kernel': True}
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        # The last name: boxes such as those of `nn.with_partitioning` add keys below.
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return not names or names[-1] not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)
