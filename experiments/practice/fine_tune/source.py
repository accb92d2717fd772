"""Trains the network in PyTorch and saves it as safetensors, to be imported."""

import pathlib
from typing import Any

import numpy as np
import safetensors.numpy
import tqdm

from experiments.framework import output
from experiments.practice.fine_tune import network


def train(
    path: pathlib.Path, images: np.ndarray, labels: np.ndarray, epochs: int
) -> None:
    """Trains on images `[N, H, W, 1]` in [0, 1], and writes the weights to `path`.

    The optimiser is Adam with a rate of 1e-3, and batches have 64 images.

    Raises:
      ValueError: if PyTorch is not installed.
    """
    torch = _torch()
    torch.manual_seed(0)
    model = network.torch_network()
    x, y = _tensor(images), torch.tensor(labels).long()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    order = np.random.default_rng(0)
    for _ in tqdm.trange(epochs, desc="PyTorch", unit="epoch", leave=False):
        for batch in np.split(order.permutation(len(x)), range(64, len(x), 64)):
            optimizer.zero_grad()
            logits = model(x[batch])
            torch.nn.functional.cross_entropy(logits, y[batch]).backward()
            optimizer.step()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    output.write_bytes(path, safetensors.numpy.save(weights))


def logits(path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Returns the logits `[N, 10]` that PyTorch computes from the weights at `path`.

    The network is in evaluation mode.
    """
    torch = _torch()
    model = network.torch_network()
    weights = safetensors.numpy.load_file(path)
    model.load_state_dict({name: torch.tensor(w) for name, w in weights.items()})
    model.eval()
    with torch.no_grad():
        return model(_tensor(images)).numpy()


def _tensor(images: np.ndarray) -> Any:
    return _torch().tensor(np.moveaxis(images, -1, 1).copy())


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "PyTorch must be installed to train the network that is imported: "
            "`pip install torch`."
        ) from error
    return torch
