"""The digits of scikit-learn, a data set that needs no download."""

from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

from experiments.datasets import examples


class Digits(examples.FromArrays, tfds.core.GeneratorBasedBuilder):
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels: no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            supervised_keys=("image", "label"),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        images, labels = sklearn.datasets.load_digits(return_X_y=True)
        images = (images * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8)
        return {
            "train": self._generate_examples(images[:1500], labels[:1500]),
            "test": self._generate_examples(images[1500:], labels[1500:]),
        }
