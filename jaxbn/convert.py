"""Conversion of weights from and to PyTorch, Keras and Haiku, as arrays by name.

It imports none of these packages. Weights are arrays by name; `load_file` and
`save_file` of `safetensors.flax` read and write files of them, also in bfloat16. On the
side of JAX they are a tree of variables, from Linen (`model.init(...)`) or NNX
(`nnx.to_pure_dict(nnx.state(model))`). `names` gives each module of the tree its name
in the other package:

  >>> import numpy as np
  >>> template = {"params": {"bn": {"scale": np.ones(2), "bias": np.zeros(2)}},
  ...             "batch_stats": {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}}
  >>> weights = {"0.weight": np.full(2, 3.0), "0.bias": np.zeros(2),
  ...            "0.running_mean": np.ones(2), "0.running_var": np.ones(2)}
  >>> variables = from_torch(weights, template, {"bn": "0"})
  >>> variables["params"]["bn"]["scale"], variables["batch_stats"]["bn"]["mean"]
  (array([3., 3.]), array([1., 1.]))

Layers besides Batch Normalization are converted too. Kernels of dense and convolutional
layers change their layout; embeddings and other normalisations keep it. A module with
neither a kernel nor an embedding counts as a normalisation. You must convert two kinds
of layers yourself, because their names do not identify them: transposed convolutions,
and a dense layer after a flattened image, whose inputs have another order in each
layout.

Further state of an `estimator`, beside mean and variance, stays as it is in the
template. Imported statistics count as established: the next batch is averaged with
them.

The hyperparameters differ. PyTorch's momentum is the weight of the NEW value, so that
`momentum=1 - torch_momentum`, and None means `estimator="cumulative"`. Keras's momentum
is the same as ours, and its epsilon is 1e-3 by default. Both compute the variance in a
stable way. PyTorch's running variance is unbiased, as in jaxbn. Keras's is biased
(`unbiased=False`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = [
    "from_haiku",
    "from_keras",
    "from_torch",
    "to_keras",
    "to_torch",
]

Weights = Mapping[str, Any]
Names = Mapping[str, str]
"""The name of each module in the other package, by its path in the tree ("a/b")."""

# A module with one of these is not a normalisation. A missing scale would not prove
# this, because a normalisation may have only a bias.
_OF_OTHERS = {"kernel", "embedding"}
# The variables of NNX's random streams.
_OF_STREAMS = ("count", "key")
# The state of estimators beside mean and variance.
_OF_ESTIMATORS = ("weight", "means", "variances")


class _Format(NamedTuple):
    """The names and the layout of variables in another package."""

    separator: str
    of_norm: Mapping[str, str]
    of_other: Mapping[str, str]
    outputs_first: bool  # Kernels are [O, I, ...] instead of [..., I, O].
    ignored: tuple[str, ...]  # The endings of names without a counterpart.
    also: Mapping[str, str]  # Other names of some modules, taken if `weights` has them.


_TORCH = _Format(
    ".",
    {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    {"kernel": "weight", "bias": "bias", "embedding": "weight"},
    True,
    ("num_batches_tracked",),
    {},
)
_KERAS = _Format(
    "/",
    {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"},
    {"kernel": "kernel", "bias": "bias", "embedding": "embeddings"},
    False,
    (),
    {"scale": "scale"},  # RMSNormalization uses it.
)
_HAIKU = _Format(
    "/",
    {"scale": "scale", "bias": "offset",
     "mean": "~/mean_ema/average", "var": "~/var_ema/average"},
    {"kernel": "w", "bias": "b", "embedding": "embeddings"},
    False,
    ("/hidden", "/counter"),
    {"bias": "b"},  # hk.Bias uses it.
)  # fmt: skip


def from_torch(weights: Weights, template: Any, names: Names) -> Any:
    """Returns the tree with the values of a PyTorch `state_dict`.

    Args:
      weights: tensors or arrays by name.
      template: the tree whose structure, shapes and dtypes the result has.
      names: the name in `weights` of each module, by its path in the tree.

    Raises:
      ValueError: with every difference: names that are missing on either side, weights
        that are not used, and shapes that do not fit.

    Example:
      >>> template = {"params": {"dense": {"kernel": np.zeros((2, 3))}}}
      >>> weights = {"fc.weight": np.ones((3, 2))}
      >>> from_torch(weights, template, {"dense": "fc"})["params"]["dense"]["kernel"]
      array([[1., 1., 1.],
             [1., 1., 1.]])
    """
    return _converted(_TORCH, weights, template, names)


def to_torch(variables: Any, names: Names) -> dict[str, np.ndarray]:
    """Returns a `state_dict` of NumPy arrays, which `torch.from_numpy` converts.

    Args:
      variables: a tree like the `template` of `from_torch`.
      names: as in `from_torch`.

    Raises:
      ValueError: if a module of the tree has no name, if a name has no module, or if
        two modules have the same name and different values.

    Example:
      >>> variables = {"batch_stats": {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}}
      >>> list(to_torch(variables, {"bn": "0"}))
      ['0.running_mean', '0.running_var', '0.num_batches_tracked']
    """
    weights = _exported(_TORCH, variables, names)
    for name in [name for name in weights if name.endswith(".running_mean")]:
        weights[name.replace("running_mean", "num_batches_tracked")] = np.array(0)
    return weights


def from_keras(weights: Weights, template: Any, names: Names) -> Any:
    """Returns the tree with the values of a Keras model.

    Args:
      weights: arrays by path, `{w.path: w.numpy() for w in model.weights}`.
      template: as in `from_torch`.
      names: as in `from_torch`.

    Raises:
      ValueError: as in `from_torch`.

    Example:
      >>> weights = {"bn/moving_mean": np.ones(2), "bn/moving_variance": np.ones(2)}
      >>> template = {"batch_stats": {"bn": {"mean": np.zeros(2), "var": np.ones(2)}}}
      >>> from_keras(weights, template, {"bn": "bn"})["batch_stats"]["bn"]["mean"]
      array([1., 1.])
    """
    return _converted(_KERAS, weights, template, names)


def to_keras(variables: Any, names: Names) -> dict[str, np.ndarray]:
    """Returns arrays by the paths of a Keras model.

    A scale is named `gamma`, as in all normalisations of Keras but RMSNormalization.

    Args:
      variables: as in `to_torch`.
      names: as in `to_torch`.

    Raises:
      ValueError: as in `to_torch`.

    Example:
      >>> to_keras({"params": {"bn": {"bias": np.ones(2)}}}, {"bn": "norm"})
      {'norm/beta': array([1., 1.])}
    """
    return _exported(_KERAS, variables, names)


def from_haiku(params: Any, state: Any, template: Any, names: Names) -> Any:
    """Returns the tree with the values of a Haiku model.

    Args:
      params: parameters of the transformed function, arrays by module and name.
      state: state of the transformed function, in the same form.
      template: as in `from_torch`.
      names: as in `from_torch`.

    Raises:
      ValueError: as in `from_torch`.

    Example:
      >>> params = {"linear": {"w": np.ones((2, 3))}}
      >>> template = {"params": {"dense": {"kernel": np.zeros((2, 3))}}}
      >>> new = from_haiku(params, {}, template, {"dense": "linear"})
      >>> float(new["params"]["dense"]["kernel"].sum())
      6.0
    """
    weights = {
        f"{module}/{name}": value
        for part in (params, state)
        for module, values in part.items()
        for name, value in values.items()
    }
    return _converted(_HAIKU, weights, template, names)


class _Leaf(NamedTuple):
    """A leaf of the tree, with its module and its place among all leaves."""

    module: str
    name: str
    place: int
    value: Any


def _converted(form: _Format, weights: Weights, template: Any, names: Names) -> Any:
    """Returns the tree with the values of `weights`; see `from_torch`."""
    leaves, structure = _leaves(template)
    keys = _keys(form, leaves, names, weights)
    problems = _check_names(leaves, keys, names)
    values = jax.tree.leaves(template)
    for leaf in leaves:
        key = keys.get(leaf.place)
        value = leaf.value  # A leaf without a key stays as it is.
        if key is not None and key not in weights:
            problems.append(f"`weights` has no {key!r}")
        elif key is not None:
            value = _laid_out(form, leaf, _as_numpy(weights[key]))
            if value.shape != np.shape(leaf.value):
                problems.append(
                    f"{key!r} has the shape {np.shape(weights[key])}, which does not "
                    f"fit {np.shape(leaf.value)} of {leaf.module}/{leaf.name}"
                )
            value = value.astype(leaf.value.dtype)
        values[leaf.place] = value
    used = set(keys.values())
    problems += [
        f"{key!r} of `weights` is not used"
        for key in weights
        if key not in used and not key.endswith(form.ignored)
    ]
    _raise(problems)
    return jax.tree.unflatten(structure, values)


def _exported(form: _Format, variables: Any, names: Names) -> dict[str, np.ndarray]:
    """Returns the arrays by their names in the other package; see `to_torch`."""
    leaves, _ = _leaves(variables)
    keys = _keys(form, leaves, names, {})
    problems = _check_names(leaves, keys, names)
    made: dict[str, np.ndarray] = {}
    for leaf in leaves:
        if leaf.place in keys:
            key, value = keys[leaf.place], np.asarray(leaf.value)
            if value.dtype.kind == "V":  # bfloat16 or another dtype that NumPy lacks.
                value = value.astype(np.float32)
            if leaf.name == "kernel" and form.outputs_first:
                value = np.moveaxis(value, (-1, -2), (0, 1))
            if key in made and not np.array_equal(made[key], value, equal_nan=True):
                problems.append(
                    f"{leaf.module}/{leaf.name} would be {key!r}, and so would other "
                    "values; give each module its own name"
                )
            made[key] = np.array(value, order="C")
    _raise(problems)
    return made


def _leaves(tree: Any) -> tuple[list[_Leaf], Any]:
    """Returns the leaves of modules in any collection, and the tree's structure."""
    with_path, structure = jax.tree_util.tree_flatten_with_path(tree)
    found = []
    for place, (keys, value) in enumerate(with_path):
        path = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        if path[0] in ("params", "batch_stats"):
            path = path[1:]
        if path[-1] == "value":  # A box, such as an NNX variable, holds it.
            path = path[:-1]
        found.append(_Leaf("/".join(path[:-1]), path[-1], place, value))
    streams = {leaf.module for leaf in found if leaf.name in _OF_STREAMS}
    found = [leaf for leaf in found if leaf.module not in streams]
    return found, structure


def _keys(
    form: _Format, leaves: list[_Leaf], names: Names, weights: Weights
) -> dict[int, str]:
    """Returns the names in the other package of the leaves that have one, by place."""
    others = {leaf.module for leaf in leaves if leaf.name in _OF_OTHERS}
    found = {}
    for leaf in leaves:
        known = form.of_other if leaf.module in others else form.of_norm
        if leaf.module in names and leaf.name in known:
            possible = [
                form.separator.join(filter(None, (names[leaf.module], kind[leaf.name])))
                for kind in (known, form.also)
                if leaf.name in kind
            ]
            given = [key for key in possible if key in weights]
            found[leaf.place] = (given or possible)[0]
    return found


def _check_names(
    leaves: list[_Leaf], keys: Mapping[int, str], names: Names
) -> list[str]:
    modules = {leaf.module for leaf in leaves}
    problems = [
        f"the module {module!r} of the tree has no name in `names`"
        for module in sorted(modules - set(names))
    ]
    problems += [
        f"{leaf.module}/{leaf.name} of the tree has no counterpart"
        for leaf in leaves
        if leaf.module in names
        and leaf.place not in keys
        and leaf.name not in _OF_ESTIMATORS
    ]
    return problems + [
        f"`names` has {module!r}, which is no module of the tree"
        for module in sorted(set(names) - modules)
    ]


def _laid_out(form: _Format, leaf: _Leaf, value: np.ndarray) -> np.ndarray:
    if leaf.name == "kernel" and form.outputs_first:
        return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
    one_axis = value.size == max(value.shape, default=1)
    if leaf.name != "kernel" and one_axis and value.size == np.size(leaf.value):
        return value.reshape(np.shape(leaf.value))  # Haiku's arrays have the rank of x.
    return value


def _as_numpy(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()  # A tensor may need a gradient, or be on a GPU.
    if value.is_floating_point():
        value = value.double()  # NumPy knows no bfloat16.
    return value.numpy()


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("The weights do not fit:\n  " + "\n  ".join(problems))
