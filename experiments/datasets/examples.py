"""The base of the builders here, whose splits are arrays."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image


class FromArrays:
    """The examples of a builder whose splits are arrays of images and labels."""

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": PIL.Image.fromarray(image), "label": int(label)}
