"""The network as PyTorch makes it."""

import importlib.util
import sys

import numpy as np
import pytest

from experiments.fine_tune import source

RNG = np.random.default_rng(0)


@pytest.mark.exhaustive
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="compares with PyTorch; `pip install torch` runs it",
)
def test_it_learns_and_is_written(tmp_path):
    labels = np.arange(200) % 2
    images = RNG.uniform(size=(200, 8, 8, 1)).astype(np.float32)
    images[labels == 1, :4] = 0  # A difference that is easily seen.
    path = tmp_path / "weights.safetensors"
    source.train(path, images, labels, epochs=5)
    logits = source.logits(path, images)
    assert np.mean(np.argmax(logits, 1) == labels) > 0.9


def test_without_pytorch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # As if it were not installed.
    with pytest.raises(ValueError, match="pip install torch"):
        source.train(tmp_path / "w.safetensors", np.ones((1, 8, 8, 1)), np.ones(1), 1)
