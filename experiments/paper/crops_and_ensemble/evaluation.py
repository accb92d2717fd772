"""Computes class probabilities from one and from 144 crops, and errors of ensembles."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.paper.crops_and_ensemble import crops

_PART = 500  # The number of images in one call of the network.


def predict(
    logits: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: np.ndarray,
    size: int,
    note: Callable[[], Any] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class probabilities of one crop of each image, and the mean of 144.

    Args:
      logits: a function of the variables of one seed and of crops
        `[n, size, size, C]`.
      variables: a tree whose leaves have the seeds as first axis.
      images: the images, `[N, H, W, C]`.
      size: the side of a crop in pixels.
      note: a function to call after each distinct crop.

    Returns:
      Two arrays `[seeds, N, classes]`.
    """

    @jax.jit
    def probabilities(images: jax.Array) -> jax.Array:
        return jax.vmap(lambda each: jax.nn.softmax(logits(each, images)))(variables)

    parts = [
        jnp.asarray(part, jnp.float32)
        for part in np.split(images, range(_PART, len(images), _PART))
    ]
    height, width = images.shape[1:3]
    middle = crops.single(height, width, size)
    counted = Counter(crops.scheme(height, width, size))
    total: Any = 0.0
    for crop, count in counted.items():
        predicted = np.concatenate(
            [probabilities(crops.take(part, crop, size)) for part in parts], axis=1
        )
        if crop == middle:
            one = predicted
        total = total + count * predicted
        note()
    return one, total / counted.total()


def wrong_by_size(predicted: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Returns which images ensembles of every size classify wrongly.

    Args:
      predicted: class probabilities, `[networks, seeds, N, classes]`.
      labels: the labels, `[N]`.

    Returns:
      For each number of networks an array `[choices, seeds, N]` over all choices of
      that many networks. It is 1 where the class of the highest mean probability is
      not the label, and 0 elsewhere.
    """
    networks = len(predicted)
    return {
        count: np.stack(
            [
                predicted[list(choice)].mean(0).argmax(-1) != labels
                for choice in itertools.combinations(range(networks), count)
            ]
        ).astype(float)
        for count in range(1, networks + 1)
    }


def drop(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Returns how much a stage lowers the error, and the standard error of that.

    Args:
      before: 1 where an image is wrong without the stage, `[seeds, N]`.
      after: 1 where an image is wrong with it, `[seeds, N]`.

    Returns:
      `seeds`, the drop of each seed, and `standard_error` of their mean, over test
      images.
    """
    difference = before - after
    each = difference.mean(0)
    return {
        "seeds": difference.mean(-1).round(5).tolist(),
        "standard_error": round(float(each.std() / np.sqrt(len(each))), 5),
    }
