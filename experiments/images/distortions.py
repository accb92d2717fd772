"""Mirrors images, and distorts their brightness, contrast and colour."""

import numpy as np

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # The weights of Rec. 601.


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


def _towards(pixels: np.ndarray, change: int, factor: np.float32) -> np.ndarray:
    """Scales the distance of pixels from an origin.

    The origin is black, the mean grey, or the grey of each pixel.
    """
    grey = (pixels @ _GREY)[..., None]
    origin = (np.float32(0), grey.mean(), grey)[change]
    return origin + factor * (pixels - origin)
