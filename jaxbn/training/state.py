"""The state of a training: Flax's `TrainState`, with batch statistics and a key."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import serialization, struct
from flax.training import train_state


class TrainState(train_state.TrainState):
    """Everything that one step of training reads and writes.

    The fields of `flax.training.train_state.TrainState` in its order, and two more.

    Attributes:
      step: steps taken, int32.
      apply_fn: the model's `apply`.
      params: the model's parameters.
      tx: the optimiser.
      opt_state: state of `tx`.
      batch_stats: the model's running statistics; empty where it has none.
      key: source of the keys of each step, for dropout and the like.
    """

    batch_stats: Any = struct.field(default_factory=dict)
    key: jax.Array = struct.field(default_factory=lambda: jax.random.key(0))

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
        """State before the first step, from all variables or from `params`, as in Flax.

        Copies what it is given: a train step donates its state, and a caller may go on
        to use what it passed here.

        Args:
          apply_fn: the `apply` of a Linen module.
          variables: what its `init` returned: `params` and perhaps `batch_stats`.
          tx: any optax transformation.
          params: the parameters, instead of `variables`.
          batch_stats: the running statistics, beside `params`.
          key: for dropout; default `jax.random.key(0)`.
          **fields: those of a subclass.

        Raises:
          ValueError: if `variables` holds no `params`, or a collection that a step
            would not keep, or comes together with `params`.
        """
        if (variables is None) == (params is None):
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
            unknown = set(variables) - {"params", "batch_stats"}
            if unknown:
                raise ValueError(
                    "`variables` may hold the collections 'params' and 'batch_stats', "
                    f"got also {sorted(unknown)}; leave those out."
                )
            params = variables["params"]
            batch_stats = variables.get("batch_stats", {})
        params, batch_stats = jax.tree.map(jnp.array, (params, batch_stats or {}))
        state = super().create(
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            batch_stats=batch_stats,
            key=jax.random.key(0) if key is None else jnp.array(key),
            **fields,
        )
        # Copied: some optimisers keep the parameters themselves, and a donated buffer
        # may occur once.
        opt_state = jax.tree.map(jnp.array, state.opt_state)
        return state.replace(step=jnp.zeros((), jnp.int32), opt_state=opt_state)

    def apply_gradients(
        self, *, grads: Any, extra_args: Mapping[str, Any] | None = None, **fields: Any
    ) -> "TrainState":
        """The state after one step of `tx`.

        Args:
          grads: a gradient for every parameter.
          extra_args: for transformations that take more than a gradient, such as
            `value` for `optax.contrib.reduce_on_plateau`.
          **fields: to replace, such as `batch_stats`.
        """
        if not extra_args:
            return super().apply_gradients(grads=grads, **fields)
        tx = optax.with_extra_args_support(self.tx)
        updates, opt_state = tx.update(grads, self.opt_state, self.params, **extra_args)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            **fields,
        )


def _to_state_dict(state: TrainState) -> dict[str, Any]:
    """The state as `flax.serialization` wants it; it knows no typed keys."""
    parts = {name: getattr(state, name) for name in _names(state)}
    parts["key"] = _data(state.key)
    return {name: serialization.to_state_dict(part) for name, part in parts.items()}


def _from_state_dict(state: TrainState, parts: dict[str, Any]) -> TrainState:
    missing = set(_names(state)) - set(parts)
    if missing:
        raise ValueError(f"The saved state lacks the fields {sorted(missing)}.")
    fields = {
        name: serialization.from_state_dict(getattr(state, name), parts[name])
        for name in _names(state)
        if name != "key"
    }
    key = jnp.asarray(parts["key"])
    if jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(state.key))
    return state.replace(key=key, **fields)


def _names(state: TrainState) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(state)
        if field.metadata.get("pytree_node", True)
    ]


def _data(key: jax.Array) -> jax.Array:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


serialization.register_serialization_state(
    TrainState, _to_state_dict, _from_state_dict, override=True
)
