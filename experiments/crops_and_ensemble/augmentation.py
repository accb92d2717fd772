"""Random crops and mirror images for training, inside the jitted step."""

import jax
import jax.numpy as jnp

from experiments.crops_and_ensemble import crops

# The smallest crop of the evaluation is this part of the image's side.
_SMALLEST = 7 / crops.SEVENTHS[-1]


def augment(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """A random part of each image, resized, every other one mirrored.

    The parts have the areas that the crops of the evaluation have, and proportions
    between 3/4 and 4/3 as in the training of GoogLeNet.

    Args:
      key: of this mini-batch.
      images: square, `[N, S, S, C]`, float.
      size: of what is returned.

    Returns:
      `[N, size, size, C]`.
    """
    numbers = jax.random.uniform(key, (len(images), 5))  # One call compiles fast.
    return jax.vmap(lambda five, image: _one(five, image, size))(numbers, images)


def _one(numbers: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """By five numbers in [0, 1)."""
    of_area, of_shape, of_mirror, of_place = *numbers[:3], numbers[3:]
    full = image.shape[0]
    side = jnp.sqrt(_SMALLEST**2 + of_area * (1 - _SMALLEST**2))
    stretch = (4 / 3) ** (of_shape - 0.5)
    sides = full * jnp.minimum(jnp.stack([side * stretch, side / stretch]), 1)
    part = crops.part(image, of_place * (full - sides), sides, size)
    return jnp.where(of_mirror < 0.5, jnp.flip(part, 1), part)
