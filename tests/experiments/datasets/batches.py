"""Made-up CIFAR-10 of a few images, as arrays by the name of the batch."""

import numpy as np

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


def made_up(tiles: tuple[int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each batch: `tiles`, in rows and columns, of noise."""
    rng = np.random.default_rng(0)
    count = tiles[0] * tiles[1]
    return {
        name: (
            rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8),
            rng.integers(10, size=count, dtype=np.uint8),
        )
        for name in (*TRAIN, "test_batch")
    }


def split(batches, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A split of them, one batch after the other."""
    names = TRAIN if name == "train" else ("test_batch",)
    images, labels = zip(*(batches[name] for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)
