"""The tables of the study, from its JSON alone."""

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.framework import output

STAGES = {
    "imported": "imported from PyTorch, on the new data",
    "recalibrated": "statistics recalibrated on new images, no labels",
    "statistics frozen as imported": "fine-tuned, frozen without recalibration",
    "not frozen": "fine-tuned, recalibrated, not frozen",
    "recalibrated and frozen": "fine-tuned, recalibrated and frozen",
}


def table(result: Mapping[str, Any]) -> str:
    """Returns the result as Markdown."""
    seconds = ", ".join(f"{name} {took}" for name, took in result["seconds"].items())
    return "\n\n".join(
        [
            _as_imported(result["as_imported"]),
            _accuracies(result),
            _diagnosed(result),
            _shipped(result),
            f"Seconds: {seconds}.",
        ]
    )


def _as_imported(found: Mapping[str, float]) -> str:
    words = (
        "On the data that it was trained on, the network has an accuracy of "
        f"{found['jaxbn']:.4f} here"
    )
    if "torch" not in found:
        return f"{words}."
    return (
        f"{words} and {found['torch']:.4f} in PyTorch; the largest difference of a "
        f"logit is {found['largest_difference']:.1e}."
    )


def _accuracies(result: Mapping[str, Any]) -> str:
    rows = []
    for name, words in STAGES.items():
        values = result["accuracies"][name]
        spread = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""
        rows.append([words, f"{statistics.fmean(values):.4f}", spread])
    return "Accuracy on the new test images:\n\n" + output.markdown(
        ["stage", "accuracy", "seeds"], rows
    )


def _diagnosed(result: Mapping[str, Any]) -> str:
    rows = [
        [
            before["layer"],
            *(
                f"{row[name]:.2f}"
                for name in ("mean_distance", "variance_ratio", "output_shift")
                for row in (before, after)
            ),
        ]
        for before, after in zip(
            result["diagnosed"]["imported"],
            result["diagnosed"]["recalibrated"],
            strict=True,
        )
    ]
    header = ["layer", "mean off by, std", "recalibrated", "variance off by, times",
              "recalibrated", "output moves", "recalibrated"]  # fmt: skip
    return (
        "Running statistics beside those of new images, by `jaxbn.diagnose`, the worst "
        "channel of each layer:\n\n" + output.markdown(header, rows)
    )


def _shipped(result: Mapping[str, Any]) -> str:
    rows = [
        [
            name, f"{row['accuracy']:.4f}", f"{row['largest_difference']:.1e}",
            row["kilobytes"], row["ms_per_100_images"],
            "{:.2f} ({:.2f} to {:.2f})".format(*row["over_as_it_is"]),
        ]
        for name, row in result["shipped"].items()
    ]  # fmt: skip
    header = ["model", "accuracy", "largest difference of a logit", "kB",
              "ms per 100 images", "time over the first"]  # fmt: skip
    layers = result["shipped"]["folded"]["layers"]
    return (
        f"Shipped, with {layers} of 4 layers folded into others:\n\n"
        + output.markdown(header, rows)
    )
