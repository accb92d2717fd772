import functools

import matplotlib.pyplot as plt
import pytest

from experiments.compilers import steps
from experiments.networks import models


@pytest.fixture
def tiny(monkeypatch):
    """Makes the programs of the studies so small that a CPU compiles them quickly."""
    network = functools.partial(models.SmallNetwork, classes=3, blocks=((4, 1),))
    resnet = functools.partial(models.ResNet50, classes=3, blocks=(1,))
    layer = functools.partial(steps.Layer, features=(4, 2))
    made = {
        "layer": steps.Program(layer, 2, (3, 3, 2), "layer"),
        "small_network": steps.Program(network, 2, (6, 6, 3)),
        "short_resnet": steps.Program(resnet, 2, (8, 8, 3)),
        "inference": steps.Program(network, 2, (6, 6, 3), "inference"),
    }
    monkeypatch.setattr(steps, "PROGRAMS", made)


@pytest.fixture(autouse=True)
def _no_open_figures():
    """Closes all figures, because matplotlib warns when twenty stay open."""
    yield
    plt.close("all")
