"""The names in PyTorch, Keras and Haiku, and the conversions for each of them."""

from typing import Any

import numpy as np

from jaxbn.interop.conversion import Format, Names, Weights, converted, exported
from jaxbn.interop.files import Path, as_weights

_TORCH = Format(
    ".",
    {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    {"kernel": "weight", "bias": "bias", "embedding": "weight"},
    True,
    ("num_batches_tracked",),
    {},
)
_KERAS = Format(
    "/",
    {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"},
    {"kernel": "kernel", "bias": "bias", "embedding": "embeddings"},
    False,
    (),
    {"scale": "scale"},  # RMSNormalization uses it.
)
_HAIKU = Format(
    "/",
    {"scale": "scale", "bias": "offset",
     "mean": "~/mean_ema/average", "var": "~/var_ema/average"},
    {"kernel": "w", "bias": "b", "embedding": "embeddings"},
    False,
    ("/hidden", "/counter"),
    {"bias": "b"},  # hk.Bias uses it.
)  # fmt: skip


def from_torch(weights: Weights | Path, template: Any, names: Names) -> Any:
    """Returns the tree with the values of a PyTorch `state_dict`.

    Args:
      weights: tensors or arrays by name, or the path of a `.safetensors` file.
      template: the tree whose structure, shapes and dtypes the result has.
      names: the name in `weights` of each module, by its path in the tree.

    Raises:
      ValueError: with every difference: names that are missing on either side, weights
        that are not used, and shapes that do not fit. Also as in `load_safetensors`.
    """
    return converted(_TORCH, as_weights(weights), template, names)


def to_torch(variables: Any, names: Names) -> dict[str, np.ndarray]:
    """Returns a `state_dict` of NumPy arrays, which `torch.from_numpy` converts.

    Args:
      variables: a tree like the `template` of `from_torch`.
      names: as in `from_torch`.

    Raises:
      ValueError: if a module of the tree has no name, if a name has no module, or if
        two modules have the same name and different values.
    """
    weights = exported(_TORCH, variables, names)
    for name in [name for name in weights if name.endswith(".running_mean")]:
        weights[name.replace("running_mean", "num_batches_tracked")] = np.array(0)
    return weights


def from_keras(weights: Weights | Path, template: Any, names: Names) -> Any:
    """Returns the tree with the values of a Keras model.

    Args:
      weights: arrays by path, `{w.path: w.numpy() for w in model.weights}`, or the path
        of a `.safetensors` file of these.
      template: as in `from_torch`.
      names: as in `from_torch`.

    Raises:
      ValueError: as in `from_torch`.
    """
    return converted(_KERAS, as_weights(weights), template, names)


def to_keras(variables: Any, names: Names) -> dict[str, np.ndarray]:
    """Returns arrays by the paths of a Keras model.

    A scale is named `gamma`, as in all normalisations of Keras but RMSNormalization.

    Args:
      variables: as in `to_torch`.
      names: as in `to_torch`.

    Raises:
      ValueError: as in `to_torch`.
    """
    return exported(_KERAS, variables, names)


def from_haiku(params: Any, state: Any, template: Any, names: Names) -> Any:
    """Returns the tree with the values of a Haiku model.

    Args:
      params: parameters of the transformed function, arrays by module and name.
      state: state of the transformed function, in the same form.
      template: as in `from_torch`.
      names: as in `from_torch`.

    Raises:
      ValueError: as in `from_torch`.
    """
    weights = {
        f"{module}/{name}": value
        for part in (params, state)
        for module, values in part.items()
        for name, value in values.items()
    }
    return converted(_HAIKU, weights, template, names)


def momentum_from_torch(momentum: float) -> float:
    """Converts the weight of the new value to that of the old one, or the reverse.

    Example:
      >>> momentum_from_torch(0.1)
      0.9
    """
    return 1 - momentum
