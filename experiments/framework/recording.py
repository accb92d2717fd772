"""Trains several seeds side by side, takes records, and resumes killed runs.

A study defines the trainings (`Run`) and the times of records (`Plan`). `train` returns
the records of every run, `[records, seeds, ...]`. The examples of a mini-batch are a
function of seed and step alone, so a resumed run gets the same batches as one that was
not killed.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments.framework import checkpoints
from jaxbn import training


def indices(
    seed: int,
    examples: int,
    batch_size: int,
    start: int,
    steps: int,
    *,
    replacement: bool = False,
    fixed: bool = False,
) -> np.ndarray:
    """Returns the indices of the examples of `steps` mini-batches.

    Args:
      seed: the seed of the run.
      examples: the number of examples in the data set.
      batch_size: the examples of a mini-batch.
      start: the first step.
      steps: the number of steps.
      replacement: True to draw with replacement. Otherwise every epoch has a
        permutation, whose remainder is dropped.
      fixed: True to keep the mini-batches of the first permutation; only their order
        changes from epoch to epoch.

    Returns:
      The indices, `[steps, batch_size]`, int32.

    Raises:
      ValueError: if a batch is larger than the data set, or both `replacement` and
        `fixed` are True.
    """
    if replacement and fixed:
        raise ValueError("`replacement` and `fixed` must not both be True.")
    per_epoch = examples // batch_size
    if per_epoch < 1:
        raise ValueError(
            f"`batch_size` must be at most the {examples} training images, got "
            f"{batch_size}."
        )
    used = per_epoch * batch_size

    def epoch(number: int) -> np.ndarray:
        rng = np.random.default_rng((seed, number))
        if fixed:
            first = np.random.default_rng((seed, 0)).permutation(examples)[:used]
            return first.reshape(per_epoch, batch_size)[rng.permutation(per_epoch)]
        order = (
            rng.integers(examples, size=used)
            if replacement
            else rng.permutation(examples)[:used]
        )
        return order.reshape(per_epoch, batch_size)

    first, last = start // per_epoch, (start + steps - 1) // per_epoch
    batches = np.concatenate([epoch(number) for number in range(first, last + 1)])
    return batches[start - first * per_epoch :][:steps].astype(np.int32)


Records = dict[str, np.ndarray]  # Arrays `[records, seeds, ...]` by name.
State = Any  # A tree of arrays, such as `jaxbn.training.TrainState`.
Batch = Mapping[str, jax.Array]


class Run(NamedTuple):
    """A configuration of a study; its functions handle one seed, and are traced."""

    name: str  # It is unique in the study, and identifies the checkpoint.
    init: Callable[..., State]  # It takes a key; see `side_by_side`.
    step: Callable[[State, Batch], State]  # It takes a mini-batch.
    record: Callable[[State, Batch], Mapping[str, jax.Array]]  # It takes held-out data.
    batch_size: int
    replacement: bool = False  # True: mini-batches are drawn with replacement.
    fixed: bool = False  # True: mini-batches always have the same examples.
    convolves: bool = False


def gradient_step(loss_fn: Any, **settings: Any) -> Callable[[State, Batch], State]:
    """Returns the step of a run that minimises a loss.

    Args:
      loss_fn: the loss function, as in `jaxbn.training.make_train_step`.
      **settings: other arguments of `make_train_step`.
    """
    train_step = training.make_train_step(loss_fn, **settings)
    return lambda state, batch: train_step(state, batch)[0]


def side_by_side(run: Run, values: Any) -> Run:
    """Returns a run of one copy per value, in one program with the same mini-batches.

    Args:
      run: a run whose `init` takes a key and a value, such as a learning rate.
      values: the values of the copies, arrays `[copies, ...]`.

    Returns:
      A run with records `[records, seeds, copies, ...]`.
    """
    return run._replace(
        init=lambda key: jax.vmap(run.init, (None, 0))(key, values),
        step=jax.vmap(run.step, (0, None)),
        record=jax.vmap(run.record, (0, None)),
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of steps, records, seeds and checkpoints."""

    steps: int
    """The number of mini-batches per run."""
    record_every: int
    """The number of steps between two records."""
    seeds: int
    """The number of trainings side by side, each with its own initial weights and
    mini-batches."""
    checkpoint_every: int
    """The number of steps between two checkpoints, from which a killed run resumes."""


def check(plan: Plan) -> None:
    """Checks a plan before any work.

    Raises:
      ValueError: if an option is wrong; the message says what it must be.
    """
    for name, value in dataclasses.asdict(plan).items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    for name in ("steps", "checkpoint_every"):
        value = getattr(plan, name)
        if value % plan.record_every:
            raise ValueError(
                f"`{name}` must be a multiple of `record_every`, got {value} and "
                f"{plan.record_every}."
            )


def recorded_steps(plan: Plan) -> np.ndarray:
    """Returns the steps after which records are taken, `[records]`."""
    return np.arange(plan.record_every, plan.steps + 1, plan.record_every)


def train(
    runs: Sequence[Run],
    plan: Plan,
    data: Batch,
    held_out: Batch,
    kept: checkpoints.Folder,
    workers: int = 1,
) -> dict[str, Records]:
    """Trains all runs and returns their records.

    Args:
      runs: the runs to train.
      plan: the plan of all runs.
      data: the training set, arrays `[N, ...]` by name; a mini-batch has rows of them.
      held_out: the data for records, arrays by name.
      kept: the place of the checkpoints. It keeps runs that are done; a run that was
        killed resumes from its last checkpoint.
      workers: the number of runs that are trained at the same time. XLA:CPU runs small
        programs on little more than one core.

    Returns:
      The records by name of the run.

    Raises:
      ValueError: as in `check`, or if a batch is larger than the data set, or two runs
        have the same name.
    """
    check(plan)
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"`runs` must have different names, got {names}.")
    data, held_out = jax.tree.map(jnp.asarray, (dict(data), dict(held_out)))
    found: dict[str, Records] = {}
    with (
        futures.ThreadPoolExecutor(workers) as pool,
        tqdm.tqdm(total=plan.steps * len(runs), unit="step", smoothing=0.05) as bar,
    ):
        for start in range(0, len(runs), workers):
            group = runs[start : start + workers]
            bar.set_description(", ".join(run.name for run in group))
            trainings = [_Training(run, plan, data, held_out, kept) for run in group]
            for training in trainings:
                if training.done:
                    tqdm.tqdm.write(f"Resumed at step {training.done}.")
                    bar.update(training.done)
            while going := [each for each in trainings if each.done < plan.steps]:
                list(pool.map(_Training.advance, going))
                for training in going:  # The main thread saves; Ctrl-C reaches it.
                    training.save_in_time()
                bar.update(plan.record_every * len(going))
            found |= {each.run.name: each.records for each in trainings}
    return found


class _Training:
    """The training of one run, and its progress."""

    def __init__(
        self,
        run: Run,
        plan: Plan,
        data: Batch,
        held_out: Batch,
        kept: checkpoints.Folder,
    ):
        self.run, self.plan = run, plan
        self.examples = len(next(iter(data.values())))
        self._indices(0)  # It raises an error if a batch is too large.
        keys = jax.vmap(jax.random.key)(jnp.arange(plan.seeds))
        self.states = jax.jit(jax.vmap(run.init))(keys)
        record = jax.vmap(run.record, (0, None))
        self.records = {
            name: np.zeros((plan.steps // plan.record_every, *leaf.shape), leaf.dtype)
            for name, leaf in jax.eval_shape(record, self.states, held_out).items()
        }
        self.done = 0
        self.saved = kept.of(run.name)
        if (found := self.saved.restore(self._tree())) is not None:
            self.states, self.records = found["states"], found["records"]
            self.done = int(found["step"])
        # XLA:CPU runs convolutions in a loop ten times slower.
        one_by_one = run.convolves and jax.default_backend() == "cpu"
        self._advance = (_one_by_one if one_by_one else _scanned)(run, data, held_out)

    def advance(self) -> None:
        """Trains until the next record and takes it."""
        self.states, record = jax.block_until_ready(
            self._advance(self.states, self._indices(self.done))
        )
        for name, values in record.items():
            self.records[name][self.done // self.plan.record_every] = values
        self.done += self.plan.record_every

    def save_in_time(self) -> None:
        """Writes a checkpoint if one is due."""
        ends = self.done == self.plan.steps
        if ends or self.done % self.plan.checkpoint_every == 0:
            self.saved.save(self.done, self._tree())

    def _tree(self) -> dict[str, Any]:
        done = np.array(self.done)
        return {"states": self.states, "records": self.records, "step": done}

    def _indices(self, start: int) -> np.ndarray:
        """Returns the examples until the next record, `[seeds, steps, batch]`."""
        of_seed = [
            indices(
                seed,
                self.examples,
                self.run.batch_size,
                start,
                self.plan.record_every,
                replacement=self.run.replacement,
                fixed=self.run.fixed,
            )
            for seed in range(self.plan.seeds)
        ]
        return np.stack(of_seed)


Advance = Callable[[State, np.ndarray], tuple[State, Mapping[str, jax.Array]]]
"""Trains all seeds on examples `[seeds, steps, batch]`, then takes a record of each."""


def _scanned(run: Run, data: Batch, held_out: Batch) -> Advance:
    """Trains in one program."""

    def one_seed(state: State, indices: jax.Array, data: Batch, held_out: Batch) -> Any:
        def body(state: State, rows: jax.Array) -> tuple[State, None]:
            return run.step(state, _rows(data, rows)), None

        state = jax.lax.scan(body, state, indices)[0]
        return state, run.record(state, held_out)

    advance = jax.jit(jax.vmap(one_seed, (0, 0, None, None)), donate_argnums=0)
    return lambda states, indices: advance(states, indices, data, held_out)


def _one_by_one(run: Run, data: Batch, held_out: Batch) -> Advance:
    """Trains with one program call for each step and seed.

    Convolutions take longer under `vmap`.
    """

    def one_seed(state: State, rows: jax.Array, data: Batch) -> State:
        return run.step(state, _rows(data, rows))

    step = jax.jit(one_seed, donate_argnums=0)
    record = jax.jit(run.record)

    def advance(states: State, indices: np.ndarray) -> Any:
        ended = []
        for seed, steps in enumerate(indices):
            state = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states)
            for rows in steps:
                state = step(state, rows, data)
            ended.append((state, record(state, held_out)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *ended)

    return advance


def _rows(data: Batch, rows: jax.Array) -> dict[str, jax.Array]:
    return {name: array[rows] for name, array in data.items()}
