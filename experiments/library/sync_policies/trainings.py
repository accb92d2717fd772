"""The policies, and the training of a network with one of them on simulated workers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.framework import recording
from experiments.networks import fully_connected, policies
from jaxbn import linen, sync, training

MEMORY = 0.8
"""The memory of the stale policies whose name gives none."""


def by_name(name: str, workers: int, steps: int) -> sync.Policy:
    """Returns the policy with a given name.

    Args:
      name: one of `NAMES`, or `stale, a = MEMORY`, perhaps with `, forward` after it.
      workers: the number of workers.
      steps: the steps of the whole training; `frozen after half` is exact in the first
        half of them.
    """
    if name.startswith("stale, a = "):
        memory, _, forward = name.removeprefix("stale, a = ").partition(", ")
        return sync.Stale(float(memory), backward=not forward)
    return {
        "exact": policies.Exact(),
        "groups of half": policies.Group(max(workers // 2, 1)),
        "half of the examples": policies.Sampled(0.5),
        "every 8th step": policies.Periodic(8),
        "every 8th step, frozen": policies.Periodic(8, "frozen"),
        "frozen after half": sync.FrozenAfter(steps // 2),
        "local": policies.Local(),
        "stale": sync.Stale(MEMORY),
        "stale, half": sync.Stale(MEMORY, backward=0.5),
        "stale, forward": sync.Stale(MEMORY, backward=False),
    }[name]


NAMES = (
    "exact",
    "groups of half",
    "half of the examples",
    "every 8th step",
    "every 8th step, frozen",
    "frozen after half",
    "local",
    "stale, forward",
    "stale, half",
    "stale",
)

NEED_SEVERAL_EXAMPLES = ("every 8th step", "local")
"""Policies that normalise by one worker's own moments: one value has no variance."""


def split(
    data: Mapping[str, np.ndarray], workers: int, by_label: bool
) -> dict[str, np.ndarray]:
    """Returns the shards side by side, `[examples of a shard, workers, ...]`.

    Args:
      data: `image` and `label`, `[N, ...]`; the remainder of N by `workers` is dropped.
      workers: the number of shards.
      by_label: True to sort the data by label before it is split, so that a worker has
        one label or two; False to shuffle it.

    Raises:
      ValueError: if there are fewer examples than workers.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(data["label"]))
    if by_label:
        order = order[np.argsort(data["label"][order], kind="stable")]
    each = len(order) // workers
    if not each:
        raise ValueError(f"There must be an example for each of {workers} workers.")
    rows = order[: each * workers].reshape(workers, each)
    rows = np.stack([rng.permutation(row) for row in rows], 1)
    return {name: array[rows] for name, array in data.items()}


def as_batch(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Flattens rows of shards to one batch, `[workers * examples, ...]`.

    The examples of one worker come before those of the next.
    """
    return {
        name: array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
        for name, array in batch.items()
    }


# Returns a network, given a function that returns its normalisations.
MakeModel = Callable[[Callable[[], nn.Module]], nn.Module]


class Setting(NamedTuple):
    """The workers and the data of a training."""

    workers: int
    examples: int  # The examples of each worker in a mini-batch.
    by_label: bool = False  # True: the shards are sorted by label.
    switch: bool = False  # True: images become negatives after half of the steps.

    @property
    def name(self) -> str:
        """The name of the setting in the JSON and in the tables."""
        parts = [f"{self.workers} x {self.examples}"]
        parts += ["sorted"] * self.by_label + ["switch"] * self.switch
        return ", ".join(parts)


class Recipe(NamedTuple):
    """The settings that all trainings of a study share."""

    make_model: MakeModel
    shape: tuple[int, ...]  # The shape of an image.
    steps: int
    rate: float
    momentum: float  # The momentum of the optimiser.
    running: float  # The momentum of the running statistics.
    white: float = 1.0  # The value of the negative of black.
    convolves: bool = False


def model_of(recipe: Recipe, setting: Setting, policy: str) -> nn.Module:
    """Returns the network with the given policy in every normalisation."""
    norm = functools.partial(
        linen.BatchNorm,
        momentum=recipe.running,
        group_size=setting.examples,
        sync=by_name(policy, setting.workers, recipe.steps),
    )
    return recipe.make_model(norm)


def init_state(
    recipe: Recipe, setting: Setting, policy: str, key: jax.Array, rate: Any
) -> training.TrainState:
    """Returns the state before the first step.

    The optimiser is SGD. Its learning rate starts at `rate`, which may be traced, and
    falls to 0.
    """
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
    return sync.for_workers(state, setting.workers)


def run(
    recipe: Recipe,
    setting: Setting,
    policy: str,
    rates: tuple[float, ...] = (),
    more: Callable[[training.TrainState, recording.Batch], dict[str, jax.Array]]
    | None = None,
) -> recording.Run:
    """Returns the run of one policy.

    It records loss and accuracy with the running statistics.

    Args:
      recipe: the settings that all trainings share.
      setting: the workers and their data.
      policy: the name of the policy.
      rates: learning rates that replace `recipe.rate`; one network is trained for each
        of them, side by side.
      more: a function that returns further records.
    """
    train_step = training.make_train_step(fully_connected.loss_fn)

    def step(state: training.TrainState, batch: recording.Batch):
        batch = as_batch(batch)
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
    """Returns the batch, as negatives once half of the steps are done."""
    if not setting.switch:
        return dict(batch)
    after = state.step >= recipe.steps // 2
    image = batch["image"]
    return {**batch, "image": jnp.where(after, recipe.white - image, image)}
