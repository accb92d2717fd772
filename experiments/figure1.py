"""The paper's Figure 1: a sigmoid network with and without Batch Normalization."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments import checkpoints, data, mlp, paper, plotting

Records = dict[str, np.ndarray]

_OBSERVED = 1000  # Test images over which the percentiles are taken.
_POPULATION = 10_000  # Training images for `exact_population`.


@dataclasses.dataclass(frozen=True)
class Figure1:
    """The paper's Figure 1: accuracy and inputs of a sigmoid, with and without BN."""

    dataset: data.Dataset = "digits"
    """Digits are embedded; the paper used MNIST."""
    steps: int = 50_000
    """Mini-batches per network (paper: 50,000)."""
    seeds: int = 1
    """Runs side by side, each with its own initial weights and mini-batches."""
    record_every: int = 500
    """Steps between two points of the curves."""
    checkpoint_every: int = 5_000
    """Steps between two checkpoints; a killed run goes on from the last."""
    hp: mlp.Hyperparameters = mlp.Hyperparameters()
    data_dir: pathlib.Path | None = None
    """Where TFDS keeps its data; default: its own default."""
    out: pathlib.Path = pathlib.Path("runs")
    """Folder for figure and JSON."""

    def run(self) -> None:
        """Trains, prints a table, writes `figure1_<dataset>.json` and `.png`."""
        records = train(self)
        result = summarize(self, records)
        self.out.mkdir(parents=True, exist_ok=True)
        name = self.out / f"figure1_{self.dataset}"
        plotting.write_json(name.with_suffix(".json"), result)
        plotting.figure1(name.with_suffix(".png"), result)
        print(table(result))
        print(f"\nWritten: {name}.png and {name}.json")


def train(config: Figure1) -> Records:
    """Trains both networks on all seeds, resuming what a killed run left.

    Returns:
      For each network `<network>/accuracy`, `[records, seeds]`, and
      `<network>/percentiles`, `[records, seeds, 3, units]`; the first record is made
      after `record_every` steps.

    Raises:
      ValueError: if `steps` is not a multiple of `record_every`, or that does not
        divide `checkpoint_every`.
    """
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
    training, test = (_split(config, name) for name in ("train", "test"))
    init = functools.partial(mlp.init_states, config.hp, pixels=test.images.shape[1])
    states = jax.vmap(init)(jax.vmap(jax.random.key)(jnp.arange(config.seeds)))
    take_steps = jax.jit(jax.vmap(mlp.train, in_axes=(0, None, 0)), donate_argnums=0)
    evaluate = _evaluator(config, training, test)
    records = _empty_records(config)

    saved = checkpoints.Checkpoints(_checkpoint_directory(config))
    template = {"states": states, "records": records, "step": np.array(0)}
    progress = saved.restore(template) or template
    states, records = progress["states"], progress["records"]
    start, size = int(progress["step"]), config.record_every
    if start:
        print(f"Resumed at step {start}.")

    bar = tqdm.tqdm(total=config.steps, initial=start, unit="step")
    for step in range(start, config.steps, size):
        indices = [
            mlp.batch_indices(config.hp, seed, len(training.labels), step, size)
            for seed in range(config.seeds)
        ]
        states = take_steps(states, training, np.stack(indices))
        _record(records, step // size, evaluate(states))
        done = step + size
        if done % config.checkpoint_every == 0 and done < config.steps:
            saved.save(
                done, {"states": states, "records": records, "step": np.array(done)}
            )
        bar.update(size)
    bar.close()
    saved.clear()
    return records


def summarize(config: Figure1, records: Records) -> dict[str, Any]:
    """Everything that is plotted or printed, as JSON holds it."""
    steps = recorded_steps(config)
    result: dict[str, Any] = {
        "study": "figure1",
        "config": identity(config),
        "step": steps.tolist(),
        "accuracy": {},
        "percentiles": {},
        "unit": {},
    }
    mean = {}
    for network in mlp.NETWORKS:
        accuracy = records[f"{network}/accuracy"]
        mean[network] = accuracy.mean(1)
        result["accuracy"][network] = _rounded(accuracy)
        traces = records[f"{network}/percentiles"][:, 0]
        unit = typical_unit(traces)
        result["unit"][network] = unit
        result["percentiles"][network] = _rounded(traces[:, :, unit])
    result["table"] = _table(steps, mean)
    if config.dataset == "mnist":
        result["distance_to_paper"] = {
            network: distance_to_paper(network, steps, mean[network])
            for network in mlp.NETWORKS
        }
    return result


def recorded_steps(config: Figure1) -> np.ndarray:
    """The steps after which records are made, `[records]`."""
    return np.arange(config.record_every, config.steps + 1, config.record_every)


def typical_unit(traces: np.ndarray) -> int:
    """The unit whose percentile traces lie nearest to the median over all units.

    Args:
      traces: `[records, percentiles, units]`.
    """
    median = np.median(traces, axis=-1, keepdims=True)
    return int(np.abs(traces - median).mean((0, 1)).argmin())


def distance_to_paper(
    network: str, steps: np.ndarray, accuracy: np.ndarray
) -> float | None:
    """Mean absolute difference from the paper's accuracies, from 4,000 steps on.

    Taken where the paper's curve has its vertices, about every 4,000 steps; None for a
    run that ends before the first.
    """
    pairs = zip(paper.ACCURACY_STEPS, paper.ACCURACY[network], strict=False)
    differences = [
        abs(float(np.interp(step, steps, accuracy)) - value)
        for step, value in pairs
        if step <= steps[-1]
    ]
    return round(float(np.mean(differences)), 4) if differences else None


def table(result: dict[str, Any]) -> str:
    """The result in a few lines of text (Markdown)."""
    rows = result["table"]
    at = list(rows["with_bn"]["accuracy"])
    lines = [
        f"Test accuracy, mean of {result['config']['seeds']} seed(s), "
        f"{result['config']['dataset']}:",
        "",
        f"| network | {' | '.join(f'{int(s):,} steps' for s in at)} | best |"
        " steps to the best accuracy without BN |",
        "| --- |" + " --- |" * (len(at) + 2),
    ]
    for network, row in rows.items():
        name = network.replace("_", " ").replace("bn", "BN")
        steps = row["steps_to_best_without_bn"]
        values = [f"{value:.4f}" for value in (*row["accuracy"].values(), row["best"])]
        cells = [name, *values, "never" if steps is None else f"{steps:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    with_bn, without_bn = (
        rows[network]["steps_to_best_without_bn"] for network in mlp.NETWORKS
    )
    if with_bn:
        ratio = f"{without_bn / with_bn:.1f}"
        lines += ["", f"With BN that takes {ratio} times fewer steps."]
    for network, distance in result.get("distance_to_paper", {}).items():
        if distance is not None:
            name = network.replace("_", " ").replace("bn", "BN")
            lines.append(f"Mean distance to the paper's curve {name}: {distance:.4f}.")
    return "\n".join(lines)


def _table(steps: np.ndarray, mean: dict[str, np.ndarray]) -> dict[str, Any]:
    best = mean["without_bn"].max()
    rows = {}
    for network, accuracy in mean.items():
        reached = np.flatnonzero(accuracy >= best)
        rows[network] = {
            "accuracy": {
                str(step): round(float(np.interp(step, steps, accuracy)), 4)
                for step in sorted({4000, 12_000, 50_000, int(steps[-1])})
                if steps[0] <= step <= steps[-1]
            },
            "best": round(float(accuracy.max()), 4),
            "steps_to_best_without_bn": int(steps[reached[0]])
            if len(reached)
            else None,
        }
    return rows


def _split(config: Figure1, name: str) -> mlp.Split:
    images, labels = data.load(config.dataset, name, config.data_dir)
    return mlp.Split(jnp.asarray(data.binarize(images)), jnp.asarray(labels))


def _evaluator(config: Figure1, training: mlp.Split, test: mlp.Split):
    population = mlp.Split(*(array[:_POPULATION] for array in training))

    @jax.jit
    def evaluate(states, test, population):
        return {
            network: jax.vmap(
                lambda state, network=network: (
                    mlp.accuracy(config.hp, network, state, test, population),
                    mlp.input_percentiles(
                        config.hp,
                        network,
                        state,
                        test.images[:_OBSERVED],
                        paper.PERCENTILES,
                    ),
                )
            )(states[network])
            for network in mlp.NETWORKS
        }

    return lambda states: evaluate(states, test, population)


def _empty_records(config: Figure1) -> Records:
    count = config.steps // config.record_every
    shape = (count, config.seeds)
    units = (len(paper.PERCENTILES), config.hp.hidden[-1])
    records = {}
    for network in mlp.NETWORKS:
        records[f"{network}/accuracy"] = np.zeros(shape, np.float32)
        records[f"{network}/percentiles"] = np.zeros((*shape, *units), np.float32)
    return records


def _record(records: Records, row: int, evaluation: dict[str, Any]) -> None:
    for network, (accuracy, percentiles) in evaluation.items():
        records[f"{network}/accuracy"][row] = accuracy
        records[f"{network}/percentiles"][row] = percentiles


def identity(config: Figure1) -> dict[str, Any]:
    """What decides the numbers: everything but where files lie and how often saved."""
    fields = dataclasses.asdict(config)
    for name in ("data_dir", "out", "checkpoint_every"):
        del fields[name]
    return json.loads(json.dumps(fields))


def _checkpoint_directory(config: Figure1) -> pathlib.Path:
    text = json.dumps(identity(config), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return config.out / "checkpoints" / f"figure1_{config.dataset}_{digest}"


def _rounded(array: np.ndarray) -> list:
    return np.round(array.astype(np.float64), 5).tolist()
