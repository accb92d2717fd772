"""Cuts square parts of images, mirrors them and distorts their colours.

Training uses random parts, and evaluation uses the middle.
"""

import math

import numpy as np
import PIL.Image

Box = tuple[float, float, float, float]  # Left, top, right, bottom.
_TRIES = 10
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # The weights of Rec. 601.


def random_resized(
    rng: np.random.Generator,
    image: PIL.Image.Image,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
) -> np.ndarray:
    """Cuts a random part of the image and resizes it.

    Args:
      rng: the random generator.
      image: an image of any size.
      size: the side of the result in pixels.
      area: the least and the greatest share of the image's area.

    Returns:
      The part, `[size, size, 3]`, uint8.

    References:
      Szegedy et al., Going Deeper with Convolutions, arXiv:1409.4842, Section 6.
    """
    return _part(image, random_box(rng, image.width, image.height, area), size)


def random_box(
    rng: np.random.Generator, width: int, height: int, area: tuple[float, float]
) -> Box:
    """Returns a part with a random area and a width of 3/4 to 4/3 of its height.

    If no random part fits, it is the largest square in the middle.
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
    """Cuts the middle of the image for evaluation and resizes it.

    Its side is 7/8 of the shorter side, as 224 of 256 pixels.

    Returns:
      The middle, `[size, size, 3]`, uint8.
    """
    return _part(image, _middle(image.width, image.height, 7 / 8), size)


def mirror(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Mirrors the image, `[H, W, C]`, with probability 1/2."""
    return image[:, ::-1] if rng.integers(2) else image


def photometric(
    rng: np.random.Generator, image: np.ndarray, strength: float
) -> np.ndarray:
    """Changes brightness, contrast and saturation at random, in a random order.

    The seventh change of the paper's Section 4.2.1 is to reduce these distortions:
    networks that train faster see each image fewer times, and should see real ones. The
    paper gives no numbers.

    Args:
      rng: the random generator.
      image: the image, `[H, W, 3]`, uint8.
      strength: each factor lies between `1 - strength` and `1 + strength`; 0 changes
        nothing.

    Returns:
      The distorted image, `[H, W, 3]`, uint8.

    References:
      Howard, Some Improvements on Deep Convolutional Neural Network Based Image
      Classification, arXiv:1312.5402, with a strength of .5.
    """
    if strength == 0:
        return image
    pixels = image.astype(np.float32)
    for change in rng.permutation(3):
        factor = np.float32(rng.uniform(1 - strength, 1 + strength))
        pixels = _towards(pixels, change, factor)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _middle(width: int, height: int, share: float) -> Box:
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _part(image: PIL.Image.Image, box: Box, size: int) -> np.ndarray:
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.asarray(image.resize((size, size), bilinear, box=box))


def _towards(pixels: np.ndarray, change: int, factor: np.float32) -> np.ndarray:
    """Scales the distance of pixels from an origin.

    The origin is black, the mean grey, or the grey of each pixel.
    """
    grey = (pixels @ _GREY)[..., None]
    origin = (np.float32(0), grey.mean(), grey)[change]
    return origin + factor * (pixels - origin)
