"""Trains one configuration on all devices, and resumes a training that was killed."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from experiments.data import pipeline, source
from experiments.networks import inception
from experiments.networks import inception_training as it
from jaxbn import parallel, training

_DISTORTION = 0.5  # The full strength of the photometric distortions.


def train(
    config: Any, name: str, images: source.Source, held_out: source.Source
) -> dict[str, list[Any]]:
    """Trains one configuration.

    Args:
      config: the options, a `study.ImageNet`.
      name: the name of the configuration, one of `inception_training.RECIPES`.
      images: the training images.
      held_out: the images for loss and accuracy.

    Returns:
      Lists with an entry for every record: `step`, the mean `train_loss` since the
      record before, and `loss` and `accuracy` on the held-out images.

    Raises:
      ValueError: if there are not enough images for the steps.
    """
    _check_enough(config, images)
    mesh = parallel.data_mesh()
    sharding = jax.NamedSharding(mesh, jax.P(mesh.axis_names[0]))
    batches_of = functools.partial(_batches, config, name, sharding)
    loss_fn = _loss_fn(config)
    step = training.make_train_step(loss_fn)
    evaluate = jax.jit(training.make_eval_step(loss_fn))

    kept = config.checkpoints().of(name)
    records = np.zeros((config.steps // config.record_every, 3))
    tree = {"state": init(config, name, images.classes), "records": records}
    tree = kept.restore(tree) or tree
    state = parallel.replicate(tree["state"], mesh)
    records = np.array(tree["records"])

    batches = iter(batches_of(images))
    # The pipeline is a function of seed and step, so this is its whole state.
    batches.set_state({"next_index": int(state.step)})
    since = []
    steps = range(int(state.step), config.steps)
    with tqdm.tqdm(
        total=config.steps, initial=steps.start, desc=name, unit="step"
    ) as bar:
        for done in range(steps.start + 1, config.steps + 1):
            state, metrics = step(state, next(batches))
            since.append(metrics["loss"])
            if len(since) > 1:  # At most two steps are in flight.
                jax.block_until_ready(since[-2])
            bar.update()
            if done % config.record_every:
                continue
            found = _evaluated(evaluate, state, batches_of(held_out, train=False))
            mean = float(sum(jax.device_get(since)))
            records[done // config.record_every - 1] = [mean, *found]
            since = []
            if done % config.checkpoint_every == 0:
                kept.save(done, {"state": state, "records": records})
    columns = dict(zip(("train_loss", "loss", "accuracy"), records.T, strict=True))
    return {
        "step": list(range(config.record_every, config.steps + 1, config.record_every)),
        **{name: values.round(5).tolist() for name, values in columns.items()},
    }


def init(config: Any, name: str, classes: int) -> training.TrainState:
    """Returns the state before the first step."""
    recipe = it.RECIPES[name]
    model = inception.BNInception(
        classes=classes,
        norm=it.norm_of(recipe, config.bn_momentum),
        activation=recipe.activation,
        dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32,
        dropout=recipe.dropout,
        local_response_norm=recipe.local_response_norm,
        width=config.width,
    )
    of_weights, of_steps = jax.random.split(jax.random.key(config.seed))
    blank = jnp.zeros((1, config.size, config.size, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(of_weights, blank)
    hp = it.Hyperparameters(
        learning_rate=config.learning_rate, final_rate=config.final_rate, l2=config.l2
    )
    tx = it.make_optimizer(hp, recipe, config.steps)
    return training.TrainState.create(model.apply, variables, tx, key=of_steps)


def _loss_fn(config: Any) -> training.LossFn:
    def loss_fn(model: Any, batch: Any, train: bool) -> dict[str, jax.Array]:
        x = batch["image"].astype(jnp.float32) / 127.5 - 1
        logits = model(x, train=train).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return {"loss": loss, "accuracy": logits.argmax(-1) == batch["label"]}

    return loss_fn


def _batches(
    config: Any, name: str, sharding: Any, split: source.Source, train: bool = True
) -> Any:
    """Returns global batches that are copied to the devices before they are needed."""
    recipe = it.RECIPES[name]
    settings = pipeline.Options(
        batch_size=config.batch_size,
        size=config.size,
        photometric=_DISTORTION * recipe.distortion,
        within_shards=recipe.reshuffle,
        threads=config.threads,
    )
    process = pipeline.Process(jax.process_index(), jax.process_count())
    if train:
        made = pipeline.training(split, settings, config.seed, config.epochs, process)
    else:
        made = pipeline.evaluation(split, settings, process)
    return pipeline.put(made, sharding)


def _evaluated(
    evaluate: Callable[..., training.Metrics], state: Any, batches: Any
) -> tuple[float, float]:
    """Returns loss and accuracy over all batches."""
    found = [jax.device_get(evaluate(state, batch)) for batch in batches]
    return tuple(float(sum(m[name] for m in found)) for name in ("loss", "accuracy"))


def _check_enough(config: Any, images: source.Source) -> None:
    enough = len(images.records) * config.epochs // config.batch_size
    if config.steps > enough:
        least = math.ceil(config.steps * config.batch_size / len(images.records))
        raise ValueError(
            f"`epochs` must be at least {least} for {config.steps} steps of "
            f"{config.batch_size} images out of {len(images.records)}, got "
            f"{config.epochs}."
        )
