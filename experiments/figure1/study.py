"""The paper's Figure 1: a sigmoid network with and without Batch Normalization."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import sys
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments import checkpoints, datasets, output
from experiments.figure1 import paper, report
from experiments.networks import mlp
from jaxbn import training

_OBSERVED = 1000  # Test images over which the percentiles are taken.
_POPULATION = 10_000  # Training images for `exact_population`.


@dataclasses.dataclass(frozen=True)
class Figure1:
    """The paper's Figure 1: accuracy and inputs of a sigmoid, with and without BN."""

    dataset: datasets.Dataset = "digits"
    """Digits are embedded; the paper used MNIST."""
    steps: int = 50_000
    """Mini-batches per network (paper: 50,000)."""
    seeds: int = 1
    """Runs side by side, each with its own initial weights and mini-batches."""
    record_every: int = 500
    """Steps between two points of the curves."""
    checkpoint_every: int = 5_000
    """Steps between two checkpoints; a killed run goes on from the last."""
    hp: mlp.Hyperparameters = dataclasses.field(default_factory=mlp.Hyperparameters)
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own, for digits `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure, table and JSON."""

    def run(self) -> None:
        """Trains, prints a table, writes `figure1_<dataset>.json`, `.md` and `.png`."""
        check(self)
        output.check_folder(self.out)
        name = self.out / f"figure1_{self.dataset}"
        if _is_finished(name.with_suffix(".json"), self):
            forget(self)
            print(report.write(name.with_suffix(".json")))
            print(
                f"\nThis run is finished: {name}.json. Remove it, or give another "
                "`--out`, to train again."
            )
            return
        try:
            records = train(self)
        except KeyboardInterrupt:
            sys.exit("Stopped. Run the same command again to resume.")
        result = report.summarize(identity(self), recorded_steps(self), records)
        output.write_result(name.with_suffix(".json"), "figure1", self, result)
        text = report.write(name.with_suffix(".json"))
        forget(self)
        print(text)
        print(f"Written: {name}.png, {name}.md and {name}.json")


def check(config: Figure1) -> None:
    """Checks the options before any work.

    Raises:
      ValueError: naming the option, what it must be and what it is.
    """
    hp = config.hp
    at_least_one = {
        "steps": config.steps,
        "seeds": config.seeds,
        "record_every": config.record_every,
        "checkpoint_every": config.checkpoint_every,
        "batch_size": hp.batch_size,
        "hidden": min(hp.hidden, default=0),
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if config.steps % config.record_every:
        raise ValueError(
            "`steps` must be a multiple of `record_every`, got "
            f"{config.steps} and {config.record_every}."
        )
    if config.checkpoint_every % config.record_every:
        raise ValueError(
            "`checkpoint_every` must be a multiple of `record_every`, got "
            f"{config.checkpoint_every} and {config.record_every}."
        )
    for name in ("learning_rate", "init_std"):
        value = getattr(hp, name)
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be positive and finite, got {value}.")
    for name in ("sgd_momentum", "bn_momentum"):
        value = getattr(hp, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], got {value}.")


def train(config: Figure1) -> report.Records:
    """Trains both networks on all seeds, resuming what a killed run left.

    Returns:
      For each network `<network>/accuracy`, `[records, seeds]`, and
      `<network>/percentiles`, `[records, seeds, 3, units]`; the first record is made
      after `record_every` steps.

    Raises:
      ValueError: as `check`, or if a batch is larger than the data set.
    """
    check(config)
    train_split, test = (_split(config, name) for name in ("train", "test"))
    if config.hp.batch_size > len(train_split.labels):
        raise ValueError(
            f"`batch_size` must be at most the {len(train_split.labels)} training "
            f"images, got {config.hp.batch_size}."
        )
    init = functools.partial(mlp.init_states, config.hp, pixels=test.images.shape[1])
    states = jax.vmap(init)(jax.vmap(jax.random.key)(jnp.arange(config.seeds)))
    records = _empty_records(config)

    saved = checkpoints.Checkpoints(_checkpoint_directory(config))
    template = {"states": states, "records": records, "step": np.array(0)}
    progress = saved.restore(template) or template
    states, records = progress["states"], progress["records"]
    start, size = int(progress["step"]), config.record_every
    if start:
        print(f"Resumed at step {start}.")

    def advance(network: str, indices: np.ndarray):
        return jax.block_until_ready(
            _advance(config.hp, network, states[network], indices, train_split, test)
        )

    # A thread for each network: XLA:CPU runs either on little more than one core.
    with (
        futures.ThreadPoolExecutor(len(mlp.NETWORKS)) as pool,
        tqdm.tqdm(total=config.steps, initial=start, unit="step") as bar,
    ):
        for step in range(start, config.steps, size):
            indices = _batch_indices(config, len(train_split.labels), step)
            results = pool.map(lambda n: advance(n, indices), mlp.NETWORKS)  # noqa: B023
            for network, (state, record) in zip(mlp.NETWORKS, results, strict=True):
                states[network] = state
                for name, values in record.items():
                    records[f"{network}/{name}"][step // size] = values
            done = step + size
            if done % config.checkpoint_every == 0 or done == config.steps:
                tree = {"states": states, "records": records, "step": np.array(done)}
                saved.save(done, tree)
            bar.update(size)
    return records


def forget(config: Figure1) -> None:
    """Removes the checkpoints of a run whose results are on disk."""
    checkpoints.Checkpoints(_checkpoint_directory(config)).clear()


def recorded_steps(config: Figure1) -> np.ndarray:
    """The steps after which records are made, `[records]`."""
    return np.arange(config.record_every, config.steps + 1, config.record_every)


def identity(config: Figure1) -> dict[str, Any]:
    """What decides the numbers: everything but where files lie and how often saved."""
    fields = dataclasses.asdict(config)
    for name in ("data_dir", "out", "checkpoint_every"):
        del fields[name]
    return json.loads(json.dumps(fields))


def _is_finished(path: pathlib.Path, config: Figure1) -> bool:
    """Whether there is the result of an earlier run with the same options."""
    if not path.exists():
        return False
    return json.loads(path.read_text()).get("config") == identity(config)


def _split(config: Figure1, name: str) -> mlp.Split:
    images, labels = datasets.load(config.dataset, name, config.data_dir)
    return mlp.Split(jnp.asarray(datasets.binarize(images)), jnp.asarray(labels))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _advance(
    hp: mlp.Hyperparameters,
    network: str,
    states: training.TrainState,
    indices: jax.Array,
    train: mlp.Split,
    test: mlp.Split,
) -> tuple[training.TrainState, dict[str, jax.Array]]:
    """Trains all seeds of one network, then takes a record of each."""
    population = mlp.Split(*(array[:_POPULATION] for array in train))

    def one_seed(state, indices):
        state = mlp.train(state, train, indices)
        return state, {
            "accuracy": mlp.accuracy(hp, network, state, test, population),
            "percentiles": mlp.input_percentiles(
                hp, network, state, test.images[:_OBSERVED], paper.PERCENTILES
            ),
        }

    return jax.vmap(one_seed)(states, indices)


def _batch_indices(config: Figure1, examples: int, start: int) -> np.ndarray:
    """Of the steps until the next record, `[seeds, steps, batch]`."""
    return np.stack(
        [
            mlp.batch_indices(config.hp, seed, examples, start, config.record_every)
            for seed in range(config.seeds)
        ]
    )


def _empty_records(config: Figure1) -> report.Records:
    count = config.steps // config.record_every
    shape = (count, config.seeds)
    units = (len(paper.PERCENTILES), config.hp.hidden[-1])
    records = {}
    for network in mlp.NETWORKS:
        records[f"{network}/accuracy"] = np.zeros(shape, np.float32)
        records[f"{network}/percentiles"] = np.zeros((*shape, *units), np.float32)
    return records


def _checkpoint_directory(config: Figure1) -> pathlib.Path:
    text = json.dumps(identity(config), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return config.out / "checkpoints" / f"figure1_{config.dataset}_{digest}"
