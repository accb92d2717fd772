"""Measures the accuracy of a network with any statistics for inference.

A model takes images and `train`, and returns a pair whose first element is the logits.
`split` has `image`, `[N, ...]`, and `label`, `[N]`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Split = Mapping[str, jax.Array]


def population(model: nn.Module, params: Any, images: jax.Array) -> Any:
    """Returns the `batch_stats` of all images, computed as one batch.

    Args:
      model: a model whose layers have a momentum of 0 and no factor m / (m - 1), so
        that they keep the statistics of this batch alone.
      params: the parameters of the model.
      images: the images of the batch, `[N, ...]`.
    """
    _, updates = model.apply(
        {"params": params}, images, train=True, mutable=["batch_stats"]
    )
    return updates.get("batch_stats", {})


def accuracy(model: nn.Module, params: Any, stats: Any, split: Split) -> jax.Array:
    """Returns the accuracy with the given statistics, of shape ()."""
    variables = {"params": params, "batch_stats": stats}
    logits, _ = model.apply(variables, split["image"], train=False)
    return jnp.mean(logits.argmax(-1) == split["label"])


def accuracy_by_batches(
    model: nn.Module, params: Any, split: Split, batch_size: int
) -> jax.Array:
    """Returns the accuracy with the statistics of each batch, of shape ().

    The batches are taken from `split` in its order. A remainder that does not fill a
    batch is left out. A split that is smaller than a batch is one batch.
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
