"""Fine-tuning on few labelled images."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxbn
from experiments.fine_tune.evaluation import NET
from experiments.fine_tune.images import Split
from jaxbn import training


def tune(
    config: Any, variables: Any, train_split: Split, seed: int, frozen: bool
) -> Any:
    """The variables after some steps on few labelled images, with a new dense layer.

    What is frozen are statistics; scale and bias are trained.
    """
    rng = np.random.default_rng(seed)
    images, labels = train_split
    mine = rng.permutation(len(images))[: config.labelled]
    head = NET.init(jax.random.key(seed), images[:1], train=False)["params"]["head"]
    variables = {**variables, "params": {**variables["params"], "head": head}}
    state = training.TrainState.create(
        NET.apply, variables, optax.adam(config.learning_rate)
    )
    loss_fn = jaxbn.freeze(_loss, scale=False, bias=False) if frozen else _loss
    train_step = training.make_train_step(loss_fn)
    for indices in _batches(rng, mine, config.batch_size, config.steps):
        batch = {"x": images[indices], "y": labels[indices]}
        state, _ = train_step(state, batch)
    return {"params": state.params, "batch_stats": state.batch_stats}


def _batches(rng, examples: np.ndarray, size: int, steps: int):
    """Epoch by epoch, each in another order, without the rest that fills no batch."""
    per_epoch = len(examples) // size
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(examples)
        start = step % per_epoch * size
        yield order[start : start + size]


def _loss(model: nn.Module, batch: Any, train: bool) -> dict[str, jax.Array]:
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {"loss": cross_entropy(model(batch["x"], train=train), batch["y"])}
