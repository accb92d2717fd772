"""Class probabilities of one crop and of 144, and what ensembles make of them."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.crops_and_ensemble import crops

_PART = 500  # Images in one call of the network.


def predict(
    logits: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    images: np.ndarray,
    size: int,
    note: Callable[[], Any] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities of one crop of each image, and the mean of 144.

    Args:
      logits: of variables of one seed, and crops `[n, size, size, C]`.
      variables: a tree whose leaves have the seeds as first axis.
      images: `[N, H, W, C]`.
      size: of a crop.
      note: called after each crop that differs from the others.

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
    """Which images ensembles of every size get wrong.

    Args:
      predicted: class probabilities, `[networks, seeds, N, classes]`.
      labels: `[N]`.

    Returns:
      By the number of networks, for every choice of so many: `[choices, seeds, N]`, 1
      where the class of the highest mean probability is not the label.
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
    """By how much a stage lowers the error, and how sure that is.

    Args:
      before: which images are wrong without it, `[seeds, N]`.
      after: and with it.

    Returns:
      `seeds`, the drop of each, and `standard_error` of their mean, over test images.
    """
    difference = before - after
    each = difference.mean(0)
    return {
        "seeds": difference.mean(-1).round(5).tolist(),
        "standard_error": round(float(each.std() / np.sqrt(len(each))), 5),
    }
