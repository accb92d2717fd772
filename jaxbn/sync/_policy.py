"""The interface of policies, which choose the moments that normalise a batch."""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from jaxbn._core.call import Call, Normalized

State = dict[str, Any]
"""The state of one layer: a dict of arrays, or of dicts of arrays. The functional form
keeps it in `BatchStats.sync`, Linen in the collection `batch_sync`, and NNX in two
variables of the layer."""


@runtime_checkable
class Policy(Protocol):
    """A way to synchronise statistics.

    A policy is static under jit, so it must be hashable, and equal objects must be the
    same policy. A frozen dataclass is both.

    Example:
      This policy is exact in every other step. In between, each worker uses its own
      moments, and no running statistics are updated.

      >>> import dataclasses, jax, jax.numpy as jnp
      >>> @dataclasses.dataclass(frozen=True)
      ... class EveryOther:
      ...     def init(self, shape, dtype):
      ...         return {"step": jnp.zeros((), jnp.int32)}
      ...     def normalize(self, call, state):
      ...         y, moments = jax.lax.cond(
      ...             state["step"] % 2 == 0,
      ...             call.by_all,
      ...             lambda: (call.by_groups(1)[0], call.no_moments()),
      ...         )
      ...         return Normalized(y, moments, {"step": state["step"] + 1})
    """

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns the first state of a layer; empty if the policy needs none.

        Arrays under `own` and `sent` differ between workers. They have an axis of
        workers in front, whose size is 1 here. All other arrays must be the same for
        all workers. A policy with `sent` and `received` exchanges messages after the
        step; `jaxbn/sync/_exchange.py` explains how.

        Args:
          shape: the shape of the channels.
          dtype: the dtype of the moments.
        """
        ...

    def normalize(self, call: Call, state: State) -> Normalized:
        """Returns the output of a layer in training, its moments and the new state.

        Args:
          call: the arguments of the call, with methods that normalise them.
          state: the state of this layer. The new state must have the same structure
            and shapes.
        """
        ...
