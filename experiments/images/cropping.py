"""Square parts of images of any size: random ones for training, the middle to test."""

import math

import numpy as np
import PIL.Image

Box = tuple[float, float, float, float]  # Left, top, right, bottom.

_TRIES = 10


def random_resized(
    rng: np.random.Generator,
    image: PIL.Image.Image,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
) -> np.ndarray:
    """A random part of the image, resized.

    Args:
      rng: where randomness comes from.
      image: of any size.
      size: of what is returned.
      area: least and greatest share of the image's area.

    Returns:
      `[size, size, 3]`, uint8.

    References:
      Szegedy et al., Going Deeper with Convolutions, arXiv:1409.4842, Section 6.
    """
    return _part(image, random_box(rng, image.width, image.height, area), size)


def random_box(
    rng: np.random.Generator, width: int, height: int, area: tuple[float, float]
) -> Box:
    """A part with a random area and a width of 3/4 to 4/3 of its height.

    The largest square in the middle if chance does not find one that fits.
    """
    for _ in range(_TRIES):
        pixels = rng.uniform(*area) * width * height
        proportion = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = math.sqrt(pixels * proportion), math.sqrt(pixels / proportion)
        if across <= width and down <= height:
            left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
            return left, top, left + across, top + down
    return _middle(width, height, 1.0)


def central(image: PIL.Image.Image, size: int) -> np.ndarray:
    """The middle, for evaluation: 7/8 of the shorter side, as 224 of 256 pixels.

    Returns:
      `[size, size, 3]`, uint8.
    """
    return _part(image, _middle(image.width, image.height, 7 / 8), size)


def _middle(width: int, height: int, share: float) -> Box:
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _part(image: PIL.Image.Image, box: Box, size: int) -> np.ndarray:
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.asarray(image.resize((size, size), bilinear, box=box))
