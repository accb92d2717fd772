"""The stages after recalibration: fine-tuning, folding and exporting the network."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export

import jaxbn
from experiments.framework import interleaved, recording
from experiments.practice.fine_tune import network
from experiments.practice.fine_tune.images import SAME_CLASSES, Split
from experiments.practice.fine_tune.network import NET
from jaxbn import training


def tune(
    config: Any, variables: Any, train_split: Split, seed: int, frozen: bool
) -> Any:
    """Returns the variables after some steps on few labelled images.

    The dense layer is a new one if the new data have other classes. `frozen` freezes
    the statistics; scale and bias are trained.
    """
    order = np.random.default_rng(seed).permutation(len(train_split[0]))
    images, labels = (array[order[: config.labelled]] for array in train_split)
    if config.new not in SAME_CLASSES:
        head = NET.init(jax.random.key(seed), images[:1], train=False)["params"]["head"]
        variables = {**variables, "params": {**variables["params"], "head": head}}
    state = training.TrainState.create(
        NET.apply, variables, optax.adam(config.learning_rate)
    )
    loss_fn = jaxbn.freeze(_loss, scale=False, bias=False) if frozen else _loss
    train_step = training.make_train_step(loss_fn)
    each = recording.indices(seed, len(images), config.batch_size, 0, config.steps)
    for indices in each:
        batch = {"x": images[indices], "y": labels[indices]}
        state, _ = train_step(state, batch)
    return {"params": state.params, "batch_stats": state.batch_stats}


def ship(
    variables: Any, images: np.ndarray, labels: np.ndarray, timed: Any
) -> dict[str, dict[str, Any]]:
    """Returns accuracy, size and time of the model as it is, folded, and exported."""
    shape = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    folded, fold_report = timed(
        "fold", lambda: jaxbn.fold(NET, variables, shape, network.evaluating)
    )
    program = timed("export", lambda: _exported(folded, shape))
    some = jnp.asarray(images[:100])
    models = {
        "as it is": functools.partial(network.logits, variables),
        "folded": functools.partial(network.logits, folded),
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
            "accuracy": network.accuracy(outputs[name], labels),
            "kilobytes": round(sizes[name] / 1e3, 1),
            "over_as_it_is": interleaved.ratio(taken[name], taken["as it is"]),
            "ms_per_100_images": round(1e3 * float(np.median(taken[name])), 2),
            "largest_difference": float(np.max(np.abs(outputs[name] - first))),
            "layers": sum(row.into is not None for row in fold_report.layers),
        }
        for name in models
    }


def _loss(model: nn.Module, batch: Any, train: bool) -> dict[str, jax.Array]:
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {"loss": cross_entropy(model(batch["x"], train=train), batch["y"])}


def _in_parts(run: Callable[[Any], Any], images: np.ndarray) -> np.ndarray:
    parts = np.array_split(images, max(1, len(images) // 1000))
    return np.concatenate([run(jnp.asarray(part)) for part in parts])


def _exported(variables: Any, shape: jax.ShapeDtypeStruct) -> bytearray:
    """Exports the evaluation with its weights, for batches of any size, as bytes."""
    batch = export.symbolic_shape("batch")
    function = jax.jit(functools.partial(network.logits, variables))
    given = jax.ShapeDtypeStruct((*batch, *shape.shape[1:]), shape.dtype)
    return export.export(function)(given).serialize()
