"""Accuracy of a network by whatever statistics inference is given.

A model is called with images and `train`, and returns logits first; `split` has
`image`, `[N, ...]`, and `label`, `[N]`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Split = Mapping[str, jax.Array]


def population(model: nn.Module, params: Any, images: jax.Array) -> Any:
    """`batch_stats` of all images, each layer normalised by those before it.

    Args:
      model: whose layers have a momentum of 0 and no m / (m - 1), so that they keep the
        statistics of the batch alone.
      params: of the model.
      images: `[N, ...]`, one batch.
    """
    _, updates = model.apply(
        {"params": params}, images, train=True, mutable=["batch_stats"]
    )
    return updates.get("batch_stats", {})


def accuracy(model: nn.Module, params: Any, stats: Any, split: Split) -> jax.Array:
    """By given statistics, shape ()."""
    variables = {"params": params, "batch_stats": stats}
    logits, _ = model.apply(variables, split["image"], train=False)
    return jnp.mean(logits.argmax(-1) == split["label"])


def accuracy_by_batches(
    model: nn.Module, params: Any, split: Split, batch_size: int
) -> jax.Array:
    """By the statistics of batches of the split itself, in its order, shape ().

    A remainder that fills no batch is left out; a split that is smaller than a batch is
    one batch.
    """
    size = min(batch_size, len(split["label"]))
    used = len(split["label"]) // size * size

    def predictions(images: jax.Array) -> jax.Array:
        (logits, _), _ = model.apply(
            {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return logits.argmax(-1)

    images = split["image"][:used]
    images = images.reshape(-1, size, *images.shape[1:])
    labels = split["label"][:used].reshape(-1, size)
    return jnp.mean(jax.vmap(predictions)(images) == labels)
