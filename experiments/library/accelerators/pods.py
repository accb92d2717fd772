"""Predicts the programs compiled for pods with the cost model of `sync_cost`."""

from typing import Any

import jax

from experiments.compilers import alpha_beta, steps
from experiments.networks import models

GROUPS = (steps.GROUP, 64, 256)


def predictions() -> dict[str, Any]:
    """Returns layers and predicted milliseconds of collectives of each program.

    The layers are the number of normalisations, and the milliseconds are given by group
    size.
    """
    jax.config.update("jax_platforms", "cpu")  # Accelerators here are not used.
    channels = steps.Layer.features[0]
    short = steps.PROGRAMS["short_resnet"].network()
    layers = {
        "layer": [models.NormLayer(channels, 56 * 56)],
        "short_resnet": models.norm_layers(short),
    }
    return {
        name: {"layers": len(found), "predicted_ms": _milliseconds(found)}
        for name, found in layers.items()
    }


def _milliseconds(layers: list[models.NormLayer]) -> dict[str, float]:
    return {
        str(group): round(1e3 * alpha_beta.sync_seconds(layers, group, _one_core), 4)
        for group in GROUPS
    }


def _one_core(devices: int, size: int) -> float:
    """Returns the seconds of a TPU v3, but with one core per chip."""
    return alpha_beta.tpu_seconds(2 * devices if devices > 1 else 1, size)
