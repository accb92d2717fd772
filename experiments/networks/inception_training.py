"""The six configurations of Section 4.2, and their differences, for small images.

They are trained by SGD with momentum, with a learning rate that decays exponentially
and mini-batches of 32.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.framework import recording
from experiments.networks import inception, norms
from jaxbn import linen, training

# The largest change of brightness, in standard deviations, and relative change of
# contrast, at a `distortion` of 1.
_DISTORTION = 0.4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A network and its training; the defaults are those of Inception."""

    batch_norm: bool = False
    activation: str = "relu"
    learning_rate: float = 1.0  # The factor of Inception's learning rate.
    dropout: float = 0.4
    l2: float = 1.0  # The factor of Inception's weight decay.
    decay: float = 1.0  # How many times faster the learning rate falls.
    local_response_norm: bool = True
    reshuffle: bool = False  # False: every epoch has the same mini-batches.
    distortion: float = 1.0  # The factor of Inception's distortion.


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "increase learning rate": {"learning_rate": 5.0},
    "remove dropout": {"dropout": 0.0},
    "reduce L2": {"l2": 1 / 5},
    "accelerate learning rate decay": {"decay": 6.0},
    "remove local response normalization": {"local_response_norm": False},
    "shuffle more thoroughly": {"reshuffle": True},
    "reduce photometric distortions": {"distortion": 0.25},
}
"""The changes of Section 4.2.1, in its order. The paper gives the numbers of the third
and the fourth. The first has the number of BN-x5, and the last one is our choice."""


def changed(recipe: Recipe, names: Iterable[str] = tuple(CHANGES)) -> Recipe:
    """Returns the recipe with the named changes, by default with all of them.

    Raises:
      ValueError: if a name is not in `CHANGES`.
    """
    for name in names:
        if name not in CHANGES:
            raise ValueError(f"`names` must be among {list(CHANGES)}, got {name!r}.")
        recipe = dataclasses.replace(recipe, **CHANGES[name])
    return recipe


def accelerated(learning_rate: float, activation: str = "relu") -> Recipe:
    """Returns the recipe with Batch Normalization and all changes.

    A `learning_rate` of 5 gives BN-x5, and 30 gives BN-x30.
    """
    recipe = changed(Recipe(batch_norm=True, activation=activation))
    return dataclasses.replace(recipe, learning_rate=learning_rate)


RECIPES: Mapping[str, Recipe] = {
    "Inception": Recipe(),
    "BN-Baseline": Recipe(batch_norm=True),
    "BN-x5": accelerated(5),
    "BN-x30": accelerated(30),
    "BN-x5-Sigmoid": accelerated(5, "sigmoid"),
    "Inception-Sigmoid": Recipe(activation="sigmoid"),
}
"""The six configurations of Section 4.2.2."""


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters that all configurations share."""

    modules: tuple[str, ...] = ("3c", "4e", "5b")
    """The Inception modules, names of the paper's Figure 5 (paper: all ten)."""
    width: float = 1 / 16
    """The number of channels, as a factor of that in Figure 5."""
    stem_stride: int = 2
    """The stride of the first convolution."""
    learning_rate: float = 0.03
    """The initial learning rate of Inception (paper: .0015)."""
    sgd_momentum: float = 0.9
    """The momentum of SGD (not in the paper)."""
    batch_size: int = 32
    """The number of examples in a mini-batch (paper: 32)."""
    final_rate: float = 0.02
    """The share of Inception's learning rate that is left after all its steps. It is
    not in the paper. GoogLeNet's schedule, 4 % less every 8 epochs, leaves .02 after
    the paper's 774 epochs."""
    l2: float = 1e-4
    """The weight decay of the kernels of Inception (not in the paper)."""
    bn_momentum: float = 0.9
    """The weight of the old running statistics in an update."""


def make_model(hp: Hyperparameters, recipe: Recipe) -> inception.SmallInception:
    """Returns the network of a recipe, with 10 classes."""
    return inception.SmallInception(
        classes=10,
        norm=norm_of(recipe, hp.bn_momentum),
        activation=recipe.activation,
        dropout=recipe.dropout,
        local_response_norm=recipe.local_response_norm,
        modules=hp.modules,
        width=hp.width,
        stem_stride=hp.stem_stride,
    )


def norm_of(recipe: Recipe, momentum: float) -> Any:
    """Returns the normalisation of a recipe, or None if it has none."""
    if not recipe.batch_norm:
        return None
    norm = functools.partial(linen.BatchNorm, momentum=momentum)
    if recipe.activation == "sigmoid":  # `linen.BatchNorm` cannot apply a sigmoid.
        return functools.partial(norms.Apart, norm)
    return norm


def make_optimizer(
    hp: Hyperparameters, recipe: Recipe, steps: int
) -> optax.GradientTransformation:
    """Returns SGD with momentum, weight decay of kernels and a decaying learning rate.

    Args:
      hp: the settings that all configurations share.
      recipe: the recipe of one configuration.
      steps: the number of steps after which the factor `hp.final_rate` of Inception's
        learning rate is left.
    """
    rate = optax.exponential_decay(
        hp.learning_rate * recipe.learning_rate,
        steps,
        hp.final_rate**recipe.decay,
    )
    return optax.chain(
        optax.add_decayed_weights(hp.l2 * recipe.l2, training.weight_decay_mask),
        optax.sgd(rate, hp.sgd_momentum),
    )


def distorted(key: jax.Array, x: jax.Array, strength: float) -> jax.Array:
    """Changes contrast and brightness of each image at random.

    Args:
      key: the random key.
      x: the standardised images, `[N, H, W, C]`.
      strength: the largest change of contrast, as a share of it, and the largest change
        of brightness, in standard deviations.
    """
    shape = (2, x.shape[0], 1, 1, 1)
    contrast, brightness = jax.random.uniform(key, shape, minval=-1, maxval=1)
    return x * (1 + strength * contrast) + strength * brightness


def standardizing(images: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation of all pixels, divided by 255."""
    return float(images.mean()) / 255, float(images.std()) / 255


def make_run(
    name: str,
    hp: Hyperparameters,
    recipe: Recipe,
    shape: Sequence[int],
    pixels: tuple[float, float],
    steps: int,
) -> recording.Run:
    """Returns a training that records accuracy and loss on the held-out data.

    Args:
      name: the name of the run.
      hp: the settings that all configurations share.
      recipe: the recipe of this configuration.
      shape: the shape of an image, `(H, W, C)`; images are uint8.
      pixels: the result of `standardizing`.
      steps: the number of steps, as in `make_optimizer`.
    """
    model = make_model(hp, recipe)
    optimizer = make_optimizer(hp, recipe, steps)
    mean, std = pixels

    def loss_fn(model: Any, batch: recording.Batch, train: bool) -> Any:
        x = (batch["image"].astype(jnp.float32) / 255 - mean) / std
        if train and recipe.distortion:
            x = distorted(
                model.make_rng("distortion"), x, _DISTORTION * recipe.distortion
            )
        logits, labels = model(x, train=train), batch["label"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": loss, "accuracy": logits.argmax(-1) == labels}

    eval_step = training.make_eval_step(loss_fn)

    def init(key: jax.Array) -> training.TrainState:
        of_weights, of_steps = jax.random.split(key)
        variables = model.init(of_weights, jnp.zeros((2, *shape)), train=False)
        return training.TrainState.create(
            model.apply, variables, optimizer, key=of_steps
        )

    def record(state: Any, held_out: recording.Batch) -> dict[str, jax.Array]:
        return {name: m.mean for name, m in eval_step(state, held_out).items()}

    return recording.Run(
        name=name,
        init=init,
        step=recording.gradient_step(loss_fn, rngs=("dropout", "distortion")),
        record=record,
        batch_size=hp.batch_size,
        fixed=not recipe.reshuffle,
        convolves=True,
    )
