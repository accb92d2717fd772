"""Trains one network on two domains, with statistics that are shared or apart.

Wu and Johnson (2021): the statistics of inference must be those of training. If the
batches of training hold both domains, their statistics are those of the mixture; if
each holds one, they are those of the domain. Other statistics in inference fail, unless
scale and bias are apart as well. Chang et al. (2019) and Xie et al. (2020) give each
domain statistics, scale and bias of its own. Li et al. (2016, AdaBN) compute statistics
of a new domain for a network that is trained on another one.

The domains are the images and their negatives. Expected: training and inference that
fit are within a point of each other, those that do not fit lose more than ten points,
and statistics of the new domain make up for a part of the loss of a network that has
not seen it.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxbn
from experiments.data import datasets
from experiments.framework import options, output, recording, training_study
from experiments.practice.domains import figure, report
from jaxbn import linen, training, variants

_DOMAINS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domains(training_study.TrainingStudy):
    """Trains on images and their negatives, with statistics per domain (5 minutes)."""

    name = "domains"
    small: ClassVar = {
        "dataset": "digits",
        "examples": 1000,
        "validation": 400,
        "steps": 300,
        "hidden": (30, 30),
        "rates": (0.1,),
        "seeds": 2,
    }
    report = staticmethod(report.table)
    draw = staticmethod(figure.draw)

    examples: int = 20_000
    """The number of training examples, from the start of the training set."""
    validation: int = 2000
    """The number of examples after them that choose the learning rate."""
    steps: int = 3000
    """The number of mini-batches per network."""
    batch_size: int = 64
    """The number of examples in a mini-batch."""
    hidden: tuple[int, ...] = (100, 100, 100)
    """The number of units of each hidden layer."""
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    """The learning rates of plain SGD from which each network's is chosen."""

    def check(self) -> None:
        options.check_at_least(
            self, steps=1, hidden=1, seeds=1, validation=1, batch_size=4,
            examples=self.batch_size,
        )  # fmt: skip
        options.check_positive(self, "rates")

    def interval(self) -> int:
        return self.steps

    def measure(self) -> dict[str, Any]:
        """Trains all networks; returns accuracies, `[seeds, rates]` each.

        They are by network, split, statistics of inference and domain.
        """
        train_split, test = self.splits()
        last = self.examples + self.validation
        held_out = {
            "train": datasets.first(train_split, self.examples),
            "validation": {k: v[self.examples : last] for k, v in train_split.items()},
            "test": test,
        }
        pixels = train_split["image"].shape[1]
        runs = [
            _run(self, name, *setting, pixels) for name, setting in _NETWORKS.items()
        ]
        found = self.train(runs, held_out["train"], held_out)
        networks = {
            name: output.plain({key: values[0] for key, values in records.items()})
            for name, records in found.items()
        }
        return {"options": self.identity(), "networks": networks}


# Each network has a layer (None, "shared" or "apart") and mini-batches of a kind.
_NETWORKS = {
    "mixed batches, one BN": (None, "both"),
    "batches of a domain, one BN": (None, "one"),
    "shared scale and bias": ("shared", "both"),
    "all apart": ("apart", "both"),
    "one domain only": (None, "first"),
}


class Network(nn.Module):
    """A fully connected network whose statistics may differ between domains.

    Attributes:
      hidden: the units of each layer.
      layer: None for one `BatchNorm`, "shared" or "apart" for statistics per domain.
    """

    hidden: tuple[int, ...]
    layer: str | None

    @nn.compact
    def __call__(self, x: jax.Array, domain: Any, train: bool) -> jax.Array:
        settings: Any = {"use_running_average": not train, "estimator": "debiased"}
        for units in self.hidden:
            x = nn.Dense(units, use_bias=False)(x)
            if self.layer is None:
                x = linen.BatchNorm(**settings)(x)
            else:
                norm = variants.DomainBatchNorm(
                    domains=_DOMAINS, shared=self.layer == "shared", **settings
                )
                x = norm(x, domain=domain)
            x = nn.relu(x)
        return nn.Dense(10)(x)


def _in_domain(images: jax.Array, domain: jax.Array) -> jax.Array:
    """Returns images `[N, pixels]` or their negatives, by the domains `[N]`."""
    return jnp.where(domain[:, None] == 0, images, 1 - images)


def _run(
    config: Domains, name: str, layer: str | None, holds: str, pixels: int
) -> recording.Run:
    model = Network(config.hidden, layer)

    def init(key: jax.Array, rate: jax.Array) -> training.TrainState:
        variables = model.init(key, jnp.zeros((2, pixels)), jnp.zeros(2, int), False)
        tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
        state = training.TrainState.create(model.apply, variables, tx)
        rates = {"learning_rate": jnp.asarray(rate, jnp.float32)}
        return state.replace(opt_state=state.opt_state._replace(hyperparams=rates))

    def loss_fn(model: Any, batch: recording.Batch, train: bool) -> dict[str, Any]:
        logits = model(batch["image"], batch["domain"], train)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return {"loss": loss}

    gradient = recording.gradient_step(loss_fn)

    def step(state: training.TrainState, batch: recording.Batch):
        size = len(batch["label"])
        domain = {
            "both": jnp.arange(size) % _DOMAINS,
            "one": jnp.full(size, state.step % _DOMAINS),
            "first": jnp.zeros(size, jnp.int32),
        }[holds]
        image = _in_domain(batch["image"], domain)
        return gradient(state, {**batch, "image": image, "domain": domain})

    def record(state: training.TrainState, held_out: Any) -> dict[str, jax.Array]:
        stats = {"as trained": lambda domain: state.batch_stats}
        if layer is None:
            stats["of the domain"] = functools.partial(
                _recalibrated, model, state, held_out["train"]
            )
        found = {}
        for split in ("validation", "test"):
            data = held_out[split]
            for domain in range(_DOMAINS):
                index = jnp.full(len(data["label"]), domain)
                images = _in_domain(data["image"], index)
                for way, make in stats.items():
                    given = {"params": state.params, "batch_stats": make(domain)}
                    logits = model.apply(given, images, index, False)
                    right = jnp.mean(logits.argmax(-1) == data["label"])  # type: ignore
                    found[f"{split}: {way}: {domain}"] = right
        return found

    run = recording.Run(name, init, step, record, config.batch_size)
    return recording.side_by_side(run, jnp.asarray(config.rates))


def _recalibrated(
    model: Network, state: training.TrainState, data: recording.Batch, domain: int
) -> Any:
    """Returns the statistics of one domain, from one batch of 2,000 images (AdaBN)."""
    images = data["image"][:2000]
    index = jnp.full(len(images), domain)
    # A debiased average of one batch is that batch.
    stats = jaxbn.reset_batch_stats(state.batch_stats)
    given = {"params": state.params, "batch_stats": stats}
    _, new = model.apply(
        given, _in_domain(images, index), index, True, mutable=["batch_stats"]
    )
    return new["batch_stats"]
