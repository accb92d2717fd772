"""The tables and the verdicts of the study, from its JSON alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.framework import output, verdicts

SAME = 0.01
"""Two accuracies count as equal if they differ by less than this, a point."""
EARLY = 1 / 4
"""The part of the training in which smoothness is compared. Later the losses and the
gradients of the two networks have different sizes."""

NETWORKS = ("without BN", "BN", "noisy BN", "noise without BN")


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    return "\n\n".join([_verdict(result), _training(result), _layers(result)])


def papers(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the paper's statement and its consequences, and whether each holds."""
    plain, bn, noisy = (_Found(result, name) for name in NETWORKS[:3])
    return {
        "percentiles move less with BN, in every layer": bool(
            np.all(bn.movement() < plain.movement())
        ),
        "the shift by gradients is smaller with BN": bool(
            bn.shift("distance") < plain.shift("distance")
        ),
        "distributions that jump cost accuracy": (
            noisy.accuracy() < bn.accuracy() - SAME
        ),
    }


def later(result: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the statements of Santurkar et al. and whether each holds."""
    plain, bn, noisy = (_Found(result, name) for name in NETWORKS[:3])
    return {
        "the loss varies less along the gradient with BN": (
            bn.early("loss_range") < plain.early("loss_range")
        ),
        "gradients predict better those a step away with BN (over their norm)": (
            bn.early("relative_change") < plain.early("relative_change")
        ),
        "with noisy BN percentiles move more than without BN": bool(
            noisy.movement().mean() > plain.movement().mean()
        ),
        "noisy BN is as accurate as BN": noisy.accuracy() > bn.accuracy() - SAME,
        "noisy BN is more accurate than no BN": noisy.accuracy() > plain.accuracy(),
    }


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the verdict on the paper's statement in words."""
    return verdicts.of(*papers(result).values())


class _Found:
    """The measurements of one network."""

    def __init__(self, result: Mapping[str, Any], name: str):
        self.values = {
            quantity: np.array(values, np.float64)  # None becomes NaN.
            for quantity, values in result["networks"][name].items()
        }

    def accuracy(self) -> float:
        return float(self.values["accuracy"][-1].mean())

    def movement(self) -> np.ndarray:
        """Returns the movement in widths per record, `[layers]`."""
        return self.values["movement"].mean(0)

    def shift(self, quantity: str) -> float:
        """Returns the mean over the training and the layers.

        The first layer is left out, because no layer before it can move.
        """
        return float(self.by_layer(quantity)[1:].mean())

    def by_layer(self, quantity: str) -> np.ndarray:
        return self.values[f"shift_{quantity}"].mean((0, 1))

    def early(self, quantity: str) -> float:
        """Returns the median over the records of the first part of the training."""
        values = self.values[quantity]
        part = values[: max(1, round(len(values) * EARLY))]
        return float(np.median(part))


def _verdict(result: Mapping[str, Any]) -> str:
    made = [
        [source, words, "yes" if found else "no"]
        for source, each in (
            ("the paper", papers(result)),
            ("Santurkar et al.", later(result)),
        )
        for words, found in each.items()
    ]
    return (
        f"Verdict on the paper's reason, less internal covariate shift: "
        f"{verdict(result)}; on smoothness instead: "
        f"{verdicts.of(*later(result).values())}.\n\n"
        + output.markdown(["from", "statement", "found"], made)
    )


def _training(result: Mapping[str, Any]) -> str:
    rows = []
    for name in NETWORKS:
        found = _Found(result, name)
        last = found.values["accuracy"][-1]
        rows.append(
            [
                name,
                output.spread(last),
                f"{found.values['train_loss'][-1].mean():.3f}",
                *(
                    f"{found.early(quantity):.3g}"
                    for quantity in ("loss_range", "gradient_change",
                                     "relative_change", "smoothness")
                ),
                f"{found.shift('distance'):.3g}",
                f"{found.shift('cosine'):.3f}",
                f"{found.movement().mean():.3f}",
            ]
        )  # fmt: skip
    header = ["network", "test accuracy", "training loss", "loss range",
              "gradient change", "over its norm", "smoothness", "shift by gradients",
              "cosine", "movement"]  # fmt: skip
    return (
        f"Training and smoothness, {result['options']['seeds']} seeds. Loss range, "
        "gradient change and smoothness: along the gradient, in the first quarter of "
        "the training. Shift by gradients: relative distance and cosine, mean over "
        "layers and records. Movement: of percentiles, in widths per record.\n\n"
        + output.markdown(header, rows)
    )


def _layers(result: Mapping[str, Any]) -> str:
    networks = [_Found(result, name) for name in NETWORKS[:3]]
    layers = len(networks[0].movement())
    rows = [
        [
            layer + 1,
            *(f"{each.movement()[layer]:.3f}" for each in networks),
            *(f"{each.by_layer('distance')[layer]:.3g}" for each in networks),
            *(f"{each.by_layer('cosine')[layer]:.3f}" for each in networks),
        ]
        for layer in range(layers)
    ]
    header = ["layer"] + [
        f"{quantity}, {name}"
        for quantity in ("movement", "shift by gradients", "cosine")
        for name in NETWORKS[:3]
    ]
    return "Internal covariate shift of every layer:\n\n" + output.markdown(
        header, rows
    )
