"""One training of a network by one policy, on simulated workers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments import recording
from experiments.networks import fully_connected
from experiments.sync_policies import policies, shards
from jaxbn import linen, sync_policies, training

MakeModel = Callable[[Callable[[], nn.Module]], nn.Module]  # Of its normalisations.


class Setting(NamedTuple):
    """What a training is besides its policy."""

    workers: int
    examples: int  # Of each worker in a mini-batch.
    by_label: bool = False  # Shards sorted by label.
    switch: bool = False  # In the middle of training images become their negatives.

    @property
    def name(self) -> str:
        """As the JSON and the tables call it."""
        parts = [f"{self.workers} x {self.examples}"]
        parts += ["sorted"] * self.by_label + ["switch"] * self.switch
        return ", ".join(parts)


class Recipe(NamedTuple):
    """What all trainings of a study share."""

    make_model: MakeModel
    shape: tuple[int, ...]  # Of an image.
    steps: int
    rate: float
    momentum: float  # Of the optimiser.
    running: float  # Momentum of the running statistics.
    white: float = 1.0  # What the negative of black is.
    convolves: bool = False


def model_of(recipe: Recipe, setting: Setting, policy: str) -> nn.Module:
    """The network with that policy in every normalisation."""
    norm = functools.partial(
        linen.BatchNorm,
        momentum=recipe.running,
        group_size=setting.examples,
        sync=policies.by_name(policy, setting.workers, recipe.steps),
    )
    return recipe.make_model(norm)


def init_state(
    recipe: Recipe, setting: Setting, policy: str, key: jax.Array, rate: Any
) -> training.TrainState:
    """Before the first step of SGD, whose rate, which may be traced, falls to 0."""
    model = model_of(recipe, setting, policy)
    variables = model.init(key, jnp.zeros((2, *recipe.shape)), train=False)
    tx = optax.chain(
        optax.inject_hyperparams(optax.sgd)(1.0, momentum=recipe.momentum),
        optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, recipe.steps)),
    )
    state = training.TrainState.create(model.apply, variables, tx)
    sgd, decay = cast(Any, state.opt_state)
    sgd.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
    state = state.replace(opt_state=(sgd, decay))
    return sync_policies.for_workers(state, setting.workers)


def run(
    recipe: Recipe,
    setting: Setting,
    policy: str,
    rates: tuple[float, ...] = (),
    more: Callable[[training.TrainState, recording.Batch], dict[str, jax.Array]]
    | None = None,
) -> recording.Run:
    """The run of one policy; it records accuracy by the running statistics.

    Args:
      recipe: what all share.
      setting: workers and their data.
      policy: its name.
      rates: train a network for each, side by side, instead of `recipe.rate`.
      more: what else is recorded.
    """
    train_step = training.make_train_step(fully_connected.loss_fn)

    def step(state: training.TrainState, batch: recording.Batch):
        batch = shards.as_batch(batch)
        return train_step(state, _switched(batch, state, recipe, setting))[0]

    def record(state: training.TrainState, held_out: recording.Batch):
        test = {name: held_out[name] for name in ("image", "label")}
        made = fully_connected.evaluate(state, _switched(test, state, recipe, setting))
        made = {name: made[name] for name in ("accuracy", "loss")}
        return made if more is None else made | more(state, held_out)

    init = functools.partial(init_state, recipe, setting, policy)
    made = recording.Run(
        name=f"{policy}, {setting.name}" + ", several rates" * bool(rates),
        init=init if rates else lambda key: init(key, recipe.rate),
        step=step,
        record=record,
        batch_size=setting.examples,
        convolves=recipe.convolves,
    )
    return recording.side_by_side(made, jnp.array(rates)) if rates else made


def _switched(
    batch: recording.Batch,
    state: training.TrainState,
    recipe: Recipe,
    setting: Setting,
) -> dict[str, jax.Array]:
    """The batch of the domain of this step."""
    if not setting.switch:
        return dict(batch)
    after = state.step >= recipe.steps // 2
    image = batch["image"]
    return {**batch, "image": jnp.where(after, recipe.white - image, image)}
