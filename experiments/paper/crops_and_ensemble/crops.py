"""The crops of an image: 144 for evaluation, a random one for training.

The 144 crops are those of Szegedy et al., Going Deeper with Convolutions (2014).

An image is resized to four scales. Each scale gives three squares along its longer
side. Each square gives six crops, and each crop also its mirror image.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# For a network of 224 pixels the shorter sides are 256, 288, 320 and 352 pixels.
SEVENTHS = (8, 9, 10, 11)
# The side of the smallest crop of the evaluation, relative to the image's side.
_SMALLEST = 7 / SEVENTHS[-1]


class Crop(NamedTuple):
    """A square of a resized image, which is resized again to the network's input."""

    shorter: int  # The shorter side of the resized image, in pixels.
    top: int
    left: int
    side: int
    mirrored: bool


def scheme(height: int, width: int, size: int) -> list[Crop]:
    """Returns all crops: 4 scales x 3 squares x 6 crops x 2 mirror images.

    The three squares of a square image are equal, so every crop comes three times.

    Args:
      height: the height of the image, in pixels.
      width: the width of the image.
      size: the side of the network's input, a multiple of 7 so that the scales are
        whole pixels.

    Returns:
      A list of 144 crops.

    Raises:
      ValueError: if `size` is not a positive multiple of 7.

    Example:
      >>> crops = scheme(height=48, width=64, size=28)
      >>> len(crops), len(set(crops))
      (144, 144)
      >>> crops[0]
      Crop(shorter=32, top=0, left=0, side=28, mirrored=False)
    """
    if size < 7 or size % 7:
        raise ValueError(f"`size` must be a positive multiple of 7, got {size}.")
    return [
        Crop(shorter, top, left, side, mirrored)
        for seventh in SEVENTHS
        for shorter in (size * seventh // 7,)
        for square in _squares(*resized(height, width, shorter))
        for top, left, side in _in_square(*square, shorter, size)
        for mirrored in (False, True)
    ]


def single(height: int, width: int, size: int) -> Crop:
    """Returns the crop of the scheme in the middle of the smallest scale."""
    shorter = size * SEVENTHS[0] // 7
    rows, columns = resized(height, width, shorter)
    return Crop(shorter, (rows - size) // 2, (columns - size) // 2, size, False)


def resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns height and width scaled to a shorter side of `shorter`."""
    ratio = shorter / min(height, width)
    return round(height * ratio), round(width * ratio)


def take(images: jax.Array, crop: Crop, size: int) -> jax.Array:
    """Takes one crop of each image.

    Args:
      images: float images, `[N, H, W, C]`.
      crop: the crop to take.
      size: the side of the result in pixels.

    Returns:
      The crops, `[N, size, size, C]`.
    """
    height, width = images.shape[1:3]
    rows, columns = resized(height, width, crop.shorter)
    per_pixel = np.array([height / rows, width / columns], np.float32)
    corner = np.array([crop.top, crop.left]) * per_pixel
    return _take(images, corner, crop.side * per_pixel, crop.mirrored, size)


def part(
    images: jax.Array, corner: jax.Array, sides: jax.Array, size: int
) -> jax.Array:
    """Cuts a rectangle from images and resizes it bilinearly to a square.

    Args:
      images: float images, `[..., H, W, C]`.
      corner: the top and left of the rectangle in pixels, `[2]`.
      sides: the height and width of the rectangle, `[2]`.
      size: the side of the result in pixels.

    Returns:
      The squares, `[..., size, size, C]`.
    """
    *outer, _, _, channels = images.shape
    scale = size / sides
    return jax.image.scale_and_translate(
        images,
        (*outer, size, size, channels),
        (len(outer), len(outer) + 1),
        scale,
        -corner * scale,
        "linear",
    )


def augment(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Cuts a random part of each image, resizes it, and mirrors half of them at random.

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


def _squares(height: int, width: int) -> list[tuple[int, int]]:
    """Returns top and left of the first, middle and last square of the longer side."""
    rows, columns = max(height - width, 0), max(width - height, 0)
    return [(0, 0), (rows // 2, columns // 2), (rows, columns)]


def _in_square(
    top: int, left: int, shorter: int, size: int
) -> Iterator[tuple[int, int, int]]:
    """Yields top, left and side of the four corners, the middle and the square."""
    last = shorter - size
    for row, column in ((0, 0), (0, last), (last, 0), (last, last), (last // 2,) * 2):
        yield top + row, left + column, size
    yield top, left, shorter


@functools.partial(jax.jit, static_argnums=4)
def _take(
    images: jax.Array, corner: jax.Array, sides: jax.Array, mirrored: bool, size: int
) -> jax.Array:
    """Takes a crop with one compiled program for all crops."""
    taken = part(images, corner, sides, size)
    return jnp.where(mirrored, jnp.flip(taken, 2), taken)


def _one(numbers: jax.Array, image: jax.Array, size: int) -> jax.Array:
    """Augments one image with five random numbers in [0, 1)."""
    of_area, of_shape, of_mirror, of_place = *numbers[:3], numbers[3:]
    full = image.shape[0]
    side = jnp.sqrt(_SMALLEST**2 + of_area * (1 - _SMALLEST**2))
    stretch = (4 / 3) ** (of_shape - 0.5)
    sides = full * jnp.minimum(jnp.stack([side * stretch, side / stretch]), 1)
    cropped = part(image, of_place * (full - sides), sides, size)
    return jnp.where(of_mirror < 0.5, jnp.flip(cropped, 1), cropped)
