"""Data sets through tensorflow-datasets, without TensorFlow.

Sets are prepared once, as ArrayRecord, and read with `tfds.data_source`. The stock
builders of MNIST, Fashion-MNIST and CIFAR-10 parse their files with TensorFlow. The
builders here parse with NumPy, and keep names, versions, features and registered
checksums.
"""

from experiments.datasets.pixels import PIXELS, binarize, flat_pixels
from experiments.datasets.preparing import Prepare, prepare
from experiments.datasets.reading import (
    Dataset,
    flat,
    flat_splits,
    halved,
    load,
    origin,
    prepared,
)

__all__ = [
    "PIXELS",
    "Dataset",
    "Prepare",
    "binarize",
    "flat",
    "flat_pixels",
    "flat_splits",
    "halved",
    "load",
    "origin",
    "prepare",
    "prepared",
]
