import io

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from experiments.data import source

COUNT = 44


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Made-up JPEGs of several sizes; the label is the number of the image."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=COUNT),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(COUNT),
            "test": self._generate_examples(5),
        }

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"image": jpeg(number), "label": number}


def jpeg(number):
    """Smooth noise, so that it looks like something; some are grey, as in ImageNet."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(256, size=(6, 8, 3), dtype=np.uint8)
    size = [(64, 48), (40, 60), (50, 50)][number % 3]
    image = PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC)
    if number % 7 == 0:
        image = image.convert("L")
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """The folder with the data set, whose training images lie in four files."""
    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyImages(data_dir=folder, file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=4)
    builder.download_and_prepare(download_config=config)
    return folder


@pytest.fixture(scope="session")
def split(tiny_images):
    """Its training images."""
    return source.read("tiny_images", "train", tiny_images)
