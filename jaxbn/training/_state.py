"""The state of training: Flax's `TrainState` with batch statistics and a key."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import core, serialization, struct
from flax.training import train_state


class TrainState(train_state.TrainState):
    """Everything that one step of training reads and writes.

    It has the fields of `flax.training.train_state.TrainState`, in the same order, and
    three more. `flax.serialization` and orbax save all but `apply_fn` and `tx`.

    Attributes:
      step: the number of steps taken, int32.
      apply_fn: the model's `apply`.
      params: the model's parameters.
      tx: the optimiser.
      opt_state: the state of `tx`.
      batch_stats: the model's running statistics; empty if it has none.
      key: the key from which each step derives its keys, for instance for dropout.
      batch_sync: the states of the policies of synchronisation; empty if there are
        none.

    Example:
      >>> import flax.linen as nn
      >>> net = nn.Dense(2)
      >>> variables = net.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> state = TrainState.create(net.apply, variables, optax.sgd(0.1))
      >>> state.step, state.params["kernel"].shape
      (Array(0, dtype=int32), (3, 2))
    """

    batch_stats: Any = struct.field(default_factory=dict)
    key: jax.Array = struct.field(default_factory=lambda: jax.random.key(0))
    batch_sync: Any = struct.field(default_factory=dict)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(cls)  # Replaces what Flax registered, which fails for keys.

    @classmethod
    def create(
        cls,
        apply_fn: Callable[..., Any],
        variables: Mapping[str, Any] | None = None,
        tx: optax.GradientTransformation | None = None,
        *,
        params: Any = None,
        batch_stats: Any = None,
        key: jax.Array | None = None,
        **fields: Any,
    ) -> "TrainState":
        """Returns the state before the first step.

        It takes all variables, or `params` as in Flax. It copies its arguments, because
        a train step donates its state, and the caller may still use the arguments.

        Args:
          apply_fn: the `apply` of a Linen module.
          variables: the result of its `init`: `params` and perhaps `batch_stats` and
            `batch_sync`.
          tx: any optax transformation.
          params: the parameters, instead of `variables`.
          batch_stats: the running statistics, together with `params`.
          key: the key for dropout; `jax.random.key(0)` by default.
          **fields: the fields of a subclass; they are copied as well.

        Raises:
          ValueError: if `variables` holds no `params` or a collection that a step
            would not keep, or if it is given together with `params` or `batch_stats`.
        """
        twice = variables is not None and batch_stats is not None
        if (variables is None) == (params is None) or twice:
            raise ValueError(
                "Give `variables`, all that `init` returned, or `params` (and perhaps "
                "`batch_stats`), and not both."
            )
        if tx is None:
            raise ValueError("`tx` must be an optax transformation, got None.")
        if variables is not None:
            if "params" not in variables:
                raise ValueError(
                    "`variables` must be all that `init` returned, with 'params' among "
                    f"it, got {sorted(variables)}; give a tree of parameters alone as "
                    "`params=`."
                )
            unknown = set(variables) - {"params", "batch_stats", "batch_sync"}
            if unknown:
                raise ValueError(
                    "`variables` may hold the collections 'params', 'batch_stats' and "
                    f"'batch_sync', got also {sorted(unknown)}; leave those out."
                )
            params = variables["params"]
            batch_stats = variables.get("batch_stats", {})
            fields = {"batch_sync": variables.get("batch_sync", {}), **fields}
        # A FrozenDict would become a dict after the first step.
        batch_stats = core.unfreeze(batch_stats or {})
        params, batch_stats, fields = _copied((params, batch_stats, fields))
        state = super().create(
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            batch_stats=batch_stats,
            key=jax.random.key(0) if key is None else jnp.array(key),
            **fields,
        )
        # Some optimisers keep the parameters themselves, and a donated buffer may
        # occur only once. So the state of the optimiser is a copy.
        opt_state = _copied(state.opt_state)
        state = state.replace(step=jnp.zeros((), jnp.int32), opt_state=opt_state)
        return jax.tree.map(as_array, state)

    def apply_gradients(
        self, *, grads: Any, extra_args: Mapping[str, Any] | None = None, **fields: Any
    ) -> "TrainState":
        """Returns the state after one step of `tx`.

        Args:
          grads: a gradient for every parameter.
          extra_args: arguments of transformations that take more than a gradient, such
            as `value` for `optax.contrib.reduce_on_plateau`. Arguments that `tx` does
            not take are left out.
          **fields: fields to replace, such as `batch_stats`.
        """
        taken = taken_by(self.tx.update, extra_args or {})
        if not taken:
            return super().apply_gradients(grads=grads, **fields)
        update: Callable[..., Any] = self.tx.update
        updates, opt_state = update(grads, self.opt_state, self.params, **taken)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            **fields,
        )


def _copied(tree: Any) -> Any:
    """Returns the tree with a copy of every array; other leaves stay as they are."""
    return jax.tree.map(
        lambda leaf: jnp.array(leaf) if hasattr(leaf, "dtype") else leaf, tree
    )


def as_array(leaf: Any) -> Any:
    """Converts a number to an array, so that the second step is not compiled anew."""
    is_number = isinstance(leaf, (bool, int, float, complex))
    return jnp.array(leaf, jnp.result_type(leaf)) if is_number else leaf


def taken_by(
    function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Returns the keyword arguments that the function accepts."""
    parameters = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _to_state_dict(state: TrainState) -> dict[str, Any]:
    """Returns the state for `flax.serialization`, which cannot store typed keys."""
    parts = {
        name: serialization.to_state_dict(getattr(state, name))
        for name in _names(state)
    }
    return {**parts, "key": jax.random.key_data(state.key)}


def _from_state_dict(state: TrainState, parts: dict[str, Any]) -> TrainState:
    names = _names(state)
    if set(names) != set(parts):
        raise ValueError(
            f"The saved state must have the fields {sorted(names)}, got "
            f"{sorted(parts)}; restore it into a state of its own kind."
        )
    fields = {
        name: serialization.from_state_dict(getattr(state, name), parts[name])
        for name in names
    }
    key = jnp.asarray(parts["key"])
    if jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        like = jnp.empty((), state.key.dtype)  # The state may hold only shapes.
        key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(like))
    return state.replace(**{**fields, "key": key})


def _names(state: TrainState) -> list[str]:
    """Returns the names of the fields that are saved."""
    names = [
        field.name
        for field in dataclasses.fields(state)
        if field.metadata.get("pytree_node", True)
    ]
    # States without policies have no such entry.
    return [name for name in names if name != "batch_sync" or state.batch_sync]


def _register(cls: type[TrainState]) -> None:
    serialization.register_serialization_state(
        cls, _to_state_dict, _from_state_dict, override=True
    )


_register(TrainState)
