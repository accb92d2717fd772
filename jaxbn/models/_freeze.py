"""Freezing layers of a model by their path, for fine-tuning.

>>> import jax.numpy as jnp
>>> from jaxbn.nnx import BatchNorm
>>> model = nnx.Sequential(BatchNorm(3, rngs=nnx.Rngs(0)))
>>> model = freeze(model, scale=False, bias=False)
>>> model.train()  # The statistics stay frozen, scale and bias are trained.
>>> y = model(jnp.ones((8, 3)))
>>> model.layers[0].mean[...]
Array([0., 0., 0.], dtype=float32)
"""

import contextvars
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
from flax import nnx
from jax.experimental import xla_metadata

from jaxbn._layers.switches import FROZEN, Frozen
from jaxbn.models import _hooks, _layers_by_path
from jaxbn.models._layers_by_path import Where

Target = TypeVar("Target", bound=Callable[..., Any])


def freeze(
    target: Target,
    where: Where = None,
    *,
    statistics: bool = True,
    updates: bool = True,
    scale: bool = True,
    bias: bool = True,
) -> Target:
    """Freezes layers of jaxbn, whatever mode the model is in.

    An NNX model is changed in place and stays frozen through `model.train()`. A
    checkpoint does not store what is frozen, so freeze a restored model again. A Linen
    module has no state, so give the function that runs it, such as the `loss_fn` of a
    train step, and use the returned function.

    No gradient reaches frozen parameters, but an optimiser may still change them by
    weight decay or momentum; see `jaxbn.training.frozen_mask`.

    Args:
      target: an NNX model, or a function that runs Linen models.
      where: the layers to freeze, by their paths, such as "encoder/block_0/norm". Give
        a pattern of `fnmatch` (its `*` also matches `/`), several patterns, a function
        that returns True for the paths of the layers, or None for all. A pattern that
        matches a module chooses all layers in it.
      statistics: normalise by the running statistics in training too.
      updates: do not update the running statistics.
      scale: do not train the scale.
      bias: do not train the bias.

    Returns:
      The model, or a function that runs its models with frozen layers. This function
      can be pickled if `target` and `where` can. Two such functions are equal if they
      have the same `target` and the same rules, so that `jax.jit` traces only one.

    Raises:
      ValueError: if `where` matches no layer, or a layer of Flax, which cannot be
        frozen. A returned function raises it when it is called.
      TypeError: if `target` is a Linen module, or neither an NNX model nor a function.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbn.linen import BatchNorm
      >>> net, x = BatchNorm(use_running_average=False), jnp.ones((8, 3))
      >>> variables = net.init(jax.random.key(0), x)
      >>> run = freeze(lambda variables, x: net.apply(variables, x))
      >>> bool(run(variables, x).std() < 1e-6)  # Nothing moves; nothing is mutable.
      True
    """
    given = Frozen(statistics, updates, scale, bias)
    return _changed(target, where, given, True)


def unfreeze(
    target: Target,
    where: Where = None,
    *,
    statistics: bool = True,
    updates: bool = True,
    scale: bool = True,
    bias: bool = True,
) -> Target:
    """Undoes `freeze`, for all layers or some of them.

    Args:
      target: as in `freeze`.
      where: the layers to unfreeze, as in `freeze`.
      statistics: let the mode of the model decide which statistics normalise.
      updates: let the mode of the model decide whether running statistics are updated.
      scale: train the scale, if the layer does.
      bias: train the bias, if the layer does.

    Returns:
      The model or a function, as in `freeze`.

    Raises:
      ValueError, TypeError: as in `freeze`.

    Example:
      >>> from jaxbn.nnx import BatchNorm
      >>> layer = freeze(BatchNorm(3, rngs=nnx.Rngs(0)))
      >>> layer = unfreeze(layer, scale=True, statistics=False, updates=False)
      >>> layer.frozen
      Frozen(statistics=True, updates=True, scale=False, bias=False)
    """
    given = Frozen(statistics, updates, scale, bias)
    return _changed(target, where, given, False)


class _Rule(NamedTuple):
    """The arguments of one call of `freeze` or `unfreeze`."""

    where: Where
    given: Frozen
    value: bool

    def applied(self, frozen: Frozen) -> Frozen:
        """Returns `frozen` after the change by this rule."""
        pairs = zip(frozen, self.given, strict=True)
        return Frozen(*(self.value if given else old for old, given in pairs))


# The rules of all frozen functions that run now, from the outermost to the innermost.
_RULES: contextvars.ContextVar[tuple[_Rule, ...]] = contextvars.ContextVar(
    "_RULES", default=()
)
_NUMBERS: dict[tuple[_Rule, ...], int] = {}

# For each tuple of rules, the paths of the layers that functions with them have run.
_SEEN: dict[tuple[_Rule, ...], set[frozenset[str]]] = {}


def _changed(target: Any, where: Where, given: Frozen, value: bool) -> Any:
    rule = _Rule(where, given, value)
    if isinstance(target, nnx.Module):
        return _changed_model(target, rule)
    if isinstance(target, (nn.Module, type)) or not callable(target):
        raise TypeError(
            "`target` must be an NNX model, or a function that runs a Linen model, got "
            f"{type(target).__name__}; give your `loss_fn`, or what calls `apply`."
        )
    _layers_by_path.as_predicate(where)  # Raises if its type is wrong.
    if isinstance(where, Sequence) and not isinstance(where, str):
        rule = rule._replace(where=tuple(where))  # A list has no hash.
    if isinstance(target, _Frozen):
        return _Frozen(target.function, (*target.rules, rule))
    return _Frozen(target, (rule,))


def _changed_model(model: nnx.Module, rule: _Rule) -> nnx.Module:
    is_meant = _layers_by_path.as_predicate(rule.where)
    layers, theirs = {}, []
    for path, layer in _layers_by_path.nnx_layers(model).items():
        if _layers_by_path.is_ours(layer):
            layers["/".join(path)] = layer
        else:
            theirs.append("/".join(path))
    _check_ours(filter(is_meant, theirs))
    meant = list(filter(is_meant, layers))
    _layers_by_path.check_any(rule.where, meant, layers)
    for path in meant:
        layers[path].frozen = rule.applied(layers[path].frozen)
    return model


def _check_ours(theirs: Iterable[str]) -> None:
    if theirs := sorted(theirs):
        raise ValueError(
            f"`where` must match layers of jaxbn, got also Flax's {theirs}; change "
            "their import, or leave them out."
        )


class _Frozen:
    """A function whose Linen layers are frozen by rules, applied in their order."""

    def __init__(self, function: Callable[..., Any], rules: tuple[_Rule, ...]):
        functools.update_wrapper(self, function)
        self.function = function
        self.rules = rules
        self._is_meant = [_layers_by_path.as_predicate(rule.where) for rule in rules]
        self._seen: set[str] = set()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frozen):
            return NotImplemented
        return (self.function, self.rules) == (other.function, other.rules)

    def __hash__(self) -> int:
        return hash((self.function, self.rules))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Frozen, (self.function, self.rules)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rules = (*_RULES.get(), *self.rules)

        def give_frozen(next_function, args, kwargs, context):
            if not _hooks.is_call_of_linen(context):
                return next_function(*args, **kwargs)
            path = "/".join(context.module.path)
            if _layers_by_path.is_flax(context.module):
                _check_ours(path for meant in self._is_meant if meant(path))
                return next_function(*args, **kwargs)
            self._seen.add(path)
            token = FROZEN.set(_applied(rules, path))
            try:
                return next_function(*args, **kwargs)
            finally:
                FROZEN.reset(token)

        token = _RULES.set(rules)
        try:
            # A jitted function within `self.function` must not reuse a trace that was
            # made without these rules. The metadata is part of the key of a trace, and
            # JAX offers no other part of the key that can be set here.
            with (
                xla_metadata.set_xla_metadata(jaxbn_frozen=_number(rules)),
                nn.intercept_methods(give_frozen),
            ):
                result = self.function(*args, **kwargs)
        finally:
            _RULES.reset(token)
        seen = self._all_seen(rules)
        for rule, is_meant in zip(self.rules, self._is_meant, strict=True):
            _layers_by_path.check_any(rule.where, filter(is_meant, seen), seen)
        return result

    def _all_seen(self, rules: tuple[_Rule, ...]) -> frozenset[str]:
        """Returns the paths of all layers that the function runs.

        If `jit` reuses a trace, the layers do not run. A function with the same rules
        saw them when the trace was made.
        """
        mine = frozenset(self._seen)
        known = _SEEN.setdefault(rules, set())
        known.add(mine)
        return mine.union(*(each for each in known if mine <= each))


def frozen_now(path: str) -> Frozen:
    """Returns the parts of a Linen layer that the running functions have frozen.

    Args:
      path: the path of the layer.
    """
    return _applied(_RULES.get(), path)


def _applied(rules: tuple[_Rule, ...], path: str) -> Frozen:
    """Returns the frozen parts of a layer; the rules apply in their order."""
    frozen = Frozen()
    for rule in rules:
        if _layers_by_path.as_predicate(rule.where)(path):
            frozen = rule.applied(frozen)
    return frozen


def _number(rules: tuple[_Rule, ...]) -> int:
    """Returns a number that identifies these rules in this process."""
    return _NUMBERS.setdefault(rules, len(_NUMBERS))
