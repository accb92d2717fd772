"""Random crops and mirror images for training, inside the jitted step."""

import jax
import jax.numpy as jnp

from experiments.crops_and_ensemble import crops

# The side of the smallest crop of the evaluation, relative to the image's side.
_SMALLEST = 7 / crops.SEVENTHS[-1]


def augment(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Cuts a random part of each image, resizes it, and mirrors every other at random.

    The areas of the parts range over those of the crops of the evaluation. Their
    proportions are between 3/4 and 4/3, as in the training of GoogLeNet.

    Args:
      key: the random key of this mini-batch.
      images: square images, `[N, S, S, C]`, float.
      size: the side of the result in pixels.

    Returns:
      The parts, `[N, size, size, C]`.
    """
    numbers = jax.random.uniform(key, (len(images), 5))  # One call compiles faster.
    return jax.vmap(lambda five, image: _one(five, image, size))(numbers, images)


def _one(numbers: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """Augments one image with five random numbers in [0, 1)."""
    of_area, of_shape, of_mirror, of_place = *numbers[:3], numbers[3:]
    full = image.shape[0]
    side = jnp.sqrt(_SMALLEST**2 + of_area * (1 - _SMALLEST**2))
    stretch = (4 / 3) ** (of_shape - 0.5)
    sides = full * jnp.minimum(jnp.stack([side * stretch, side / stretch]), 1)
    part = crops.part(image, of_place * (full - sides), sides, size)
    return jnp.where(of_mirror < 0.5, jnp.flip(part, 1), part)
