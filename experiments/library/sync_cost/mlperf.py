"""Compares a model with the step times of published runs of ResNet-50 on TPU v3.

The runs are those of the MLPerf logs (Google, rounds v0.6 and v0.7), five of each kind.
A log gives the time of every block of four epochs with its evaluation. The first block
is longer by 2 to 220 seconds, in which inputs start to flow. The published number is
the time of the whole run divided by its steps, and so is longer than a step. `steady`
is the median of the blocks after the first.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compilers import alpha_beta
from experiments.networks import models


class Run(NamedTuple):
    """One kind of run, with five logs. All times are milliseconds per step."""

    round: str
    cores: int
    images: int  # The images per core.
    group: int  # The number of cores that share statistics.
    published: float  # The time of the whole run divided by its steps.
    steady: float  # The median block of each log; of these, the median.
    fastest: float  # The fastest of the five logs.
    slowest: float


RUNS = (
    Run("v0.6", 32, 128, 1, 134.8, 131.18, 131.17, 131.18),
    Run("v0.6", 128, 128, 1, 134.5, 130.99, 130.98, 131.02),
    Run("v0.6", 256, 128, 1, 138.0, 136.25, 136.04, 156.16),
    Run("v0.6", 512, 64, 1, 80.3, 79.01, 78.93, 92.57),
    Run("v0.6", 1024, 32, 1, 45.9, 44.24, 42.36, 45.35),
    Run("v0.6", 2048, 16, 8, 27.3, 25.24, 25.21, 25.28),
    Run("v0.7 TF", 8192, 8, 8, 16.8, 13.99, 13.89, 14.03),
    Run("v0.7 JAX", 8192, 8, 8, 15.7, 14.55, 14.32, 14.55),
)

# The relative difference of five equal runs that are limited by the chips alone. Other
# runs of v0.6 differ by 7 to 17 %: something else slowed them, probably their inputs.
STEADY = 0.01

# Million cycles of a step on one core, by images, as the TPU compiler estimates them:
# python -m experiments.library.accelerators.worker --platform tpu --target v3:2x2
#     --program resnet50 --norm flax --parameters cast --images 16
CYCLES = {8: 15.53, 16: 25.39, 32: 44.99, 64: 85.28, 128: 146.57}
MEGAHERTZ = 940.0
PARAMETERS = 25_557_032  # ResNet-50; its gradients are added up in float32.


def compare() -> dict[str, Any]:
    """Compares the model with the steady step time of every run.

    A step is the compiled cycles times a factor, the sum of the gradients over the
    cores, and the synchronisation of statistics. Only the factor is fitted, to the runs
    without synchronised statistics that are limited by the chips alone. The other runs
    are predicted.
    """
    fitted = [run for run in RUNS if run.group == 1 and _spread(run) <= STEADY]
    factor = float(
        np.mean(
            [(run.steady - _gradient_ms(run)) / _compiled_ms(run) for run in fitted]
        )
    )
    layers = models.norm_layers(models.ResNet50())
    rows = []
    for run in RUNS:
        sync = 1e3 * alpha_beta.sync_seconds(layers, run.group, alpha_beta.tpu_seconds)
        computed, gradient = factor * _compiled_ms(run), _gradient_ms(run)
        predicted = computed + gradient + sync
        rows.append(
            {
                "run": run.round,
                "cores": run.cores,
                "images_per_core": run.images,
                "group": run.group,
                "published_ms": run.published,
                "steady_ms": run.steady,
                "spread": round(_spread(run), 4),
                "computed_ms": round(computed, 1),
                "gradient_ms": round(gradient, 2),
                "sync_ms": round(sync, 2),
                "predicted_ms": round(predicted, 1),
                "sync_share": round(sync / predicted, 4),
                "error": round(predicted / run.steady - 1, 3),
                "fitted": run in fitted,
            }
        )
    return {"factor": round(factor, 3), "runs": rows, "straight_line": straight_line()}


def straight_line() -> dict[str, Any]:
    """Returns the predictions of a time per image and a constant per step.

    Both are fitted to the published times of all runs without synchronised statistics.
    """
    fitted = [run for run in RUNS if run.group == 1]
    published = np.array([run.published for run in fitted])
    images = np.array([[run.images, 1.0] for run in fitted])
    # Dividing by the time of each run fits relative errors. Otherwise the slowest runs
    # would decide.
    solution, *_ = np.linalg.lstsq(
        images / published[:, None], np.ones(len(fitted)), rcond=None
    )
    layers = models.norm_layers(models.ResNet50())
    errors = []
    for run in RUNS:
        sync = 1e3 * alpha_beta.sync_seconds(layers, run.group, alpha_beta.tpu_seconds)
        predicted = float(solution @ [run.images, 1.0]) + sync
        errors.append(round(predicted / run.published - 1, 3))
    return {
        "ms_per_image": round(float(solution[0]), 4),
        "constant_ms": round(float(solution[1]), 2),
        "errors": errors,
    }


def parameters(model: Any) -> int:
    """Returns the number of parameters of a network on images of 224x224."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda key, x: model.init(key, x, train=False), jax.random.key(0), image
    )
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _spread(run: Run) -> float:
    return run.slowest / run.fastest - 1


def _compiled_ms(run: Run) -> float:
    return 1e3 * CYCLES[run.images] / MEGAHERTZ


def _gradient_ms(run: Run) -> float:
    return 1e3 * alpha_beta.tpu_seconds(run.cores, 4 * PARAMETERS)
