"""Trains fully connected networks over the values of one quantity, side by side.

A result has `values`, and `accuracy` by activation and network, `[seeds, values]`. It
is None where a training diverged.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.framework import curves, output, recording
from experiments.networks import fully_connected

# A network works if its accuracy is within this of the best one of its activation. The
# tolerance exceeds the spread of seeds, and a network that is stuck is far below.
TOLERANCE = 0.05
# A network has learnt something if it reaches this accuracy, among ten classes.
LEARNS = 0.5


def run(
    name: str,
    model: fully_connected.FullyConnected,
    pixels: int,
    batch_size: int,
    learning_rate: Sequence[float],
    hidden: Sequence[float],
    last: Sequence[float],
) -> recording.Run:
    """Returns a run of networks side by side.

    Each network has its own learning rate and factors of its initial weights.

    Args:
      name: the name of the run.
      model: the model of all networks.
      pixels: the number of pixels of an image.
      batch_size: the examples of a mini-batch.
      learning_rate: the learning rate of each network.
      hidden: the factor of the weights of the hidden layers, for each network.
      last: the factor of the weights before the softmax, for each network.
    """

    def init(key: jax.Array, value: tuple[jax.Array, jax.Array, jax.Array]):
        rate, hidden, last = value
        state = fully_connected.init_state(model, pixels, key, rate)
        return fully_connected.scaled(state, hidden, last)

    single = recording.Run(
        name,
        init,
        recording.gradient_step(fully_connected.loss_fn),
        fully_connected.evaluate,
        batch_size,
    )
    values = [jnp.asarray(each, jnp.float32) for each in (learning_rate, hidden, last)]
    return recording.side_by_side(single, tuple(values))


def accuracies(records: recording.Records) -> list[list[float | None]]:
    """Returns the accuracies at the end, `[seeds, values]`.

    They are None where a training diverged.
    """
    last = {name: values[-1] for name, values in records.items()}
    return output.plain(np.where(last["finite"], last["accuracy"], np.nan))


def mean(accuracy: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Returns the mean over seeds, `[values]`; a diverged training counts as 0."""
    return np.nan_to_num(np.array(accuracy, float)).mean(0)


def works(networks: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns for each network whether it works at each value, `[values]`.

    Args:
      networks: the accuracies by network, for one activation.
    """
    means = {name: mean(accuracy) for name, accuracy in networks.items()}
    bar = max(each.max() for each in means.values()) - TOLERANCE
    return {name: each >= bar for name, each in means.items()}


def learns(accuracy: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Returns whether a network has learnt something at each value, `[values]`."""
    return mean(accuracy) >= LEARNS


def decades(values: Sequence[float], where: np.ndarray) -> float:
    """Returns the number of decades that the values at `where` cover.

    Each value counts for one step of the grid, which is logarithmic.
    """
    step = math.log10(values[-1] / values[0]) / (len(values) - 1)
    return round(float(step * where.sum()), 2)


def table(result: Mapping[str, Any], labels: Mapping[str, str], words: str) -> str:
    """Returns the mean accuracies and the divergences as Markdown."""
    rows = []
    for activation, networks in result["accuracy"].items():
        for name, label in labels.items():
            found = np.array(networks[name], float)
            lost = np.isnan(found).sum(0)
            cells = [
                f"diverged {count} of {len(found)}" if count else f"{value:.3f}"
                for value, count in zip(mean(networks[name]), lost, strict=True)
            ]
            rows.append([activation, label, *cells])
    header = ["activation", "network", *(f"{value:.2g}" for value in result["values"])]
    return f"{words}:\n\n" + output.markdown(header, rows)


def draw(
    result: Mapping[str, Any],
    styles: Mapping[str, tuple[str, str, str]],
    xlabel: str,
) -> Figure:
    """Draws accuracy against the values, with a panel per activation.

    A cross marks each value at which a training diverged.

    Args:
      result: the result of a study.
      styles: the label, colour and line style of each network, by name.
      xlabel: the label of the values.
    """
    panels = len(result["accuracy"])
    figure, axes_of = plt.subplots(
        1, panels, figsize=(10, 3.8), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (activation, networks) in zip(
        axes_of[0], result["accuracy"].items(), strict=True
    ):
        for name, (label, color, style) in styles.items():
            found = np.array(networks[name], float)
            values = np.array(result["values"])
            curves.draw(
                axes, values, np.nan_to_num(found).T, style,
                color=color, marker=".", label=label,
            )  # fmt: skip
            axes.set_xscale("log")
            lost = values[np.isnan(found).any(0)]
            axes.plot(lost, np.zeros(len(lost)), "x", color=color, markersize=9)
        axes.plot([], [], "x", color="black", label="a seed diverged, counted as 0")
        axes.axhline(0.1, color="gray", lw=0.5, ls=":")
        axes.set(title=activation, xlabel=xlabel, ylim=(-0.03, 1))
    axes_of[0][0].set_ylabel("test accuracy, mean and range of seeds")
    handles, labels = axes_of[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure
