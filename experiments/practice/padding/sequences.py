"""Turns images into sequences of rows of unequal length, padded with zeros."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import datasets


def from_images(images: np.ndarray, shortest: int, seed: int) -> dict[str, np.ndarray]:
    """Keeps a random number of the first rows of every image.

    Args:
      images: uint8 `[N, H, W, 1]`; images with 16 rows or more are halved.
      shortest: the least number of rows.
      seed: the seed of the lengths.

    Returns:
      `image`, `[N, rows, features]` float32, zero beyond the length, and `length`,
      `[N]`.
    """
    scaled = images.astype(np.float32) / 255
    x = datasets.halved({"image": scaled})["image"][..., 0]
    rows = x.shape[1]
    lengths = np.random.default_rng(seed).integers(shortest, rows + 1, len(x))
    kept = np.arange(rows)[None] < lengths[:, None]
    return {"image": x * kept[..., None], "length": lengths.astype(np.int32)}


def longer(batch: dict[str, jax.Array], factor: int) -> dict[str, jax.Array]:
    """Pads the sequences to `factor` times as many rows."""
    rows = batch["image"].shape[1]
    widths = ((0, 0), (0, (factor - 1) * rows), (0, 0))
    return {**batch, "image": jnp.pad(batch["image"], widths)}


def mask(batch: dict[str, jax.Array]) -> jax.Array:
    """Returns a mask `[N, rows]` that is True at rows and False at padding."""
    return jnp.arange(batch["image"].shape[1])[None] < batch["length"][:, None]
