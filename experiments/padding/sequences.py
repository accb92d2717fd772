"""Images as sequences of their rows, of unequal length, padded with zeros."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets


def from_images(images: np.ndarray, shortest: int, seed: int) -> dict[str, np.ndarray]:
    """The first rows of every image, as many as chance has it.

    Args:
      images: uint8 `[N, H, W, 1]`; from 16 rows on, two by two pixels become one.
      shortest: least number of rows.
      seed: of the lengths.

    Returns:
      `image`, `[N, rows, features]` float32, zero beyond the length; `length`, `[N]`.
    """
    scaled = images.astype(np.float32) / 255
    x = datasets.halved({"image": scaled})["image"][..., 0]
    rows = x.shape[1]
    lengths = np.random.default_rng(seed).integers(shortest, rows + 1, len(x))
    kept = np.arange(rows)[None] < lengths[:, None]
    return {"image": x * kept[..., None], "length": lengths.astype(np.int32)}


def longer(batch: dict[str, jax.Array], factor: int) -> dict[str, jax.Array]:
    """The same sequences with more padding: `factor` times as many rows."""
    rows = batch["image"].shape[1]
    widths = ((0, 0), (0, (factor - 1) * rows), (0, 0))
    return {**batch, "image": jnp.pad(batch["image"], widths)}


def mask(batch: dict[str, jax.Array]) -> jax.Array:
    """Where there is a row and no padding, `[N, rows]`."""
    return jnp.arange(batch["image"].shape[1])[None] < batch["length"][:, None]
