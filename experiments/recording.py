"""Training that records: several seeds side by side, resumed where it was killed.

A study says what is trained (`Run`) and when a record is taken (`Plan`); `train` gives
the records of every run, `[records, seeds, ...]`.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments import batches, checkpoints

Records = dict[str, np.ndarray]  # By name, `[records, seeds, ...]`.
State = Any  # A tree of arrays: `jaxbn.training.TrainState` or any other.


class Run(NamedTuple):
    """One configuration of a study; all functions are of one seed, and traced."""

    name: str  # Unique in the study, and what finds its checkpoint again.
    init: Callable[[jax.Array], State]  # Of a key.
    step: Callable[[State, Any], State]  # Of the state and a mini-batch.
    record: Callable[[State], Mapping[str, jax.Array]]  # What is wanted of a state.
    batch_size: int
    convolves: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, how often, how many."""

    steps: int
    """Mini-batches per run."""
    record_every: int
    """Steps between two records."""
    seeds: int
    """Side by side, each with its own initial weights and mini-batches."""
    checkpoint_every: int = 10
    """Records between two checkpoints."""


def check(plan: Plan) -> None:
    """Checks a plan before any work.

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    for name, value in dataclasses.asdict(plan).items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if plan.steps % plan.record_every:
        raise ValueError(
            "`steps` must be a multiple of `record_every`, got "
            f"{plan.steps} and {plan.record_every}."
        )


def recorded_steps(plan: Plan) -> np.ndarray:
    """The steps after which records are taken, `[records]`."""
    return np.arange(plan.record_every, plan.steps + 1, plan.record_every)


def train(
    runs: Sequence[Run],
    plan: Plan,
    data: Mapping[str, np.ndarray],
    folder: pathlib.Path,
    identity: Any,
) -> dict[str, Records]:
    """The records of every run.

    A run that is done is kept in `folder` until `forget`; one that was killed goes on
    from its last checkpoint. A run whose loss has become infinite is trained to its
    end, so that all records have one length.

    Args:
      runs: what to train, one after the other.
      plan: of all runs.
      data: the training set, arrays `[N, ...]` by name; a mini-batch has rows of them.
      folder: for what is kept of the study.
      identity: what decides the numbers besides, JSON can write it; another identity
        begins anew.

    Returns:
      By name of the run.

    Raises:
      ValueError: as `check`, or if a batch is larger than the data set, or two runs
        have one name.
    """
    check(plan)
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"`runs` must have names of their own, got {names}.")
    on_device = {name: jnp.asarray(array) for name, array in data.items()}
    found = {}
    total = plan.steps * len(runs)
    with tqdm.tqdm(total=total, unit="step", smoothing=0.05) as bar:
        for run in runs:
            bar.set_description(run.name)
            directory = _directory(folder, run, plan, identity)
            found[run.name] = _train(run, plan, on_device, directory, bar)
    return found


def forget(
    runs: Sequence[Run], plan: Plan, folder: pathlib.Path, identity: Any
) -> None:
    """Removes what is kept of runs whose results are on disk."""
    for run in runs:
        checkpoints.Checkpoints(_directory(folder, run, plan, identity)).clear()


def _train(run: Run, plan: Plan, data, directory: pathlib.Path, bar) -> Records:
    keys = jax.vmap(jax.random.key)(jnp.arange(plan.seeds))
    states = jax.jit(jax.vmap(run.init))(keys)
    made = jax.eval_shape(jax.vmap(run.record), states)
    count = plan.steps // plan.record_every
    records = {
        name: np.zeros((count, *leaf.shape), leaf.dtype) for name, leaf in made.items()
    }
    saved = checkpoints.Checkpoints(directory)
    template = {"states": states, "records": records, "step": np.array(0)}
    progress = saved.restore(template) or template
    states, records = progress["states"], progress["records"]
    start = int(progress["step"])
    bar.update(start)
    # XLA:CPU runs convolutions that stand in a loop ten times slower.
    one_by_one = run.convolves and jax.default_backend() == "cpu"
    advance = (_one_by_one if one_by_one else _scanned)(run, data)
    examples = len(next(iter(data.values())))
    for step in range(start, plan.steps, plan.record_every):
        indices = np.stack(
            [
                batches.indices(seed, examples, run.batch_size, step, plan.record_every)
                for seed in range(plan.seeds)
            ]
        )
        states, record = advance(states, indices)
        place = step // plan.record_every
        for name, values in record.items():
            records[name][place] = values
        done = step + plan.record_every
        if (place + 1) % plan.checkpoint_every == 0 or done == plan.steps:
            tree = {"states": states, "records": records, "step": np.array(done)}
            saved.save(done, tree)
        bar.update(plan.record_every)
    return records


Advance = Callable[[State, np.ndarray], tuple[State, Mapping[str, jax.Array]]]
"""Trains all seeds by `[seeds, steps, batch]` examples, then takes a record of each."""


def _scanned(run: Run, data: Mapping[str, jax.Array]) -> Advance:
    """In one program."""

    def one_seed(state: State, indices: jax.Array, data: Any) -> Any:
        def body(state: State, rows: jax.Array) -> tuple[State, None]:
            return run.step(state, _batch(data, rows)), None

        state = jax.lax.scan(body, state, indices)[0]
        return state, run.record(state)

    advance = jax.jit(jax.vmap(one_seed, (0, 0, None)), donate_argnums=0)
    return lambda states, indices: advance(states, indices, data)


def _one_by_one(run: Run, data: Mapping[str, jax.Array]) -> Advance:
    """In a program for each step."""

    def one_seed(state: State, rows: jax.Array, data: Any) -> State:
        return run.step(state, _batch(data, rows))

    step = jax.jit(jax.vmap(one_seed, (0, 0, None)), donate_argnums=0)
    record = jax.jit(jax.vmap(run.record))

    def advance(states: State, indices: np.ndarray) -> Any:
        for place in range(indices.shape[1]):
            states = step(states, indices[:, place], data)
        return states, record(states)

    return advance


def _batch(data: Mapping[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
    return {name: array[rows] for name, array in data.items()}


def _directory(
    folder: pathlib.Path, run: Run, plan: Plan, identity: Any
) -> pathlib.Path:
    fields = dataclasses.asdict(plan)
    del fields["checkpoint_every"]
    text = json.dumps([run.name, fields, identity], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return folder / "checkpoints" / digest
