"""Compares the model as it is, folded, and exported."""

import functools
from collections.abc import Callable
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import jaxbn
from experiments.fine_tune import evaluation
from experiments.fine_tune.evaluation import NET
from experiments.measuring import interleaved


def ship(
    variables: Any, images: np.ndarray, labels: np.ndarray, timed: Any
) -> dict[str, dict[str, Any]]:
    """Returns accuracy, size and time of the model as it is, folded, and exported."""
    shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    folded, fold_report = timed(
        "fold", lambda: jaxbn.fold(NET, variables, shape, evaluation.evaluating)
    )
    program = timed("export", lambda: _exported(folded, shape))
    some = jnp.asarray(images[:100])
    models = {
        "as it is": functools.partial(evaluation.logits, variables),
        "folded": functools.partial(evaluation.logits, folded),
        "folded and exported": jax.jit(export.deserialize(program).call),
    }
    sizes = {
        "as it is": len(flax.serialization.to_bytes(variables)),
        "folded": len(flax.serialization.to_bytes(folded)),
        "folded and exported": len(program),
    }
    programs = {
        name: lambda run=run: jax.block_until_ready(run(some))
        for name, run in models.items()
    }
    taken = interleaved.seconds(programs, rounds=15)
    outputs = {name: _in_parts(run, images) for name, run in models.items()}
    first = outputs["as it is"]
    return {
        name: {
            "accuracy": evaluation.accuracy(outputs[name], labels),
            "kilobytes": round(sizes[name] / 1e3, 1),
            "over_as_it_is": interleaved.ratio(taken[name], taken["as it is"]),
            "ms_per_100_images": round(1e3 * float(np.median(taken[name])), 2),
            "largest_difference": float(np.max(np.abs(outputs[name] - first))),
            "layers": sum(row.into is not None for row in fold_report.layers),
        }
        for name in models
    }


def _in_parts(run: Callable[[Any], Any], images: np.ndarray) -> np.ndarray:
    parts = np.array_split(images, max(1, len(images) // 1000))
    return np.concatenate([run(jnp.asarray(part)) for part in parts])


def _exported(variables: Any, shape: jax.ShapeDtypeStruct) -> bytearray:
    """Exports the evaluation with its weights, for batches of any size, as bytes."""
    batch = export.symbolic_shape("batch")
    function = jax.jit(functools.partial(evaluation.logits, variables))
    given = jax.ShapeDtypeStruct((*batch, *shape.shape[1:]), shape.dtype)
    return export.export(function)(given).serialize()
