"""Fine-tunes the network on few labelled images."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxbn
from experiments import batches
from experiments.fine_tune.evaluation import NET
from experiments.fine_tune.images import SAME_CLASSES, Split
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
    each = batches.indices(seed, len(images), config.batch_size, 0, config.steps)
    for indices in each:
        batch = {"x": images[indices], "y": labels[indices]}
        state, _ = train_step(state, batch)
    return {"params": state.params, "batch_stats": state.batch_stats}


def _loss(model: nn.Module, batch: Any, train: bool) -> dict[str, jax.Array]:
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {"loss": cross_entropy(model(batch["x"], train=train), batch["y"])}
