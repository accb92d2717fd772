"""The interface of policies, which choose the moments that normalise a batch.

A policy is a static, hashable object with two functions. `init` makes the state of one
layer. `normalize` takes a call and that state. Some policies exchange messages only
after the step, in one collective for all layers. The state of such a policy has the
entries `said` and `heard`; see `jaxbn.sync_policies.exchange`.

  >>> import dataclasses
  >>> @dataclasses.dataclass(frozen=True)
  ... class EveryOther:  # Exact in every other step, alone in the others.
  ...     def init(self, shape, dtype):
  ...         return {"step": jnp.zeros((), jnp.int32)}
  ...     def normalize(self, call, state):
  ...         y, moments = jax.lax.cond(
  ...             state["step"] % 2 == 0,
  ...             call.by_all,
  ...             lambda: (call.by_groups(1)[0], nothing(call)),
  ...         )
  ...         return Normalized(y, moments, {"step": state["step"] + 1})
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxbn.call import Call
from jaxbn.core import reduction
from jaxbn.core.moments import Moments

State = dict[str, Any]


class WithSync(NamedTuple):
    """Running statistics and the state of a policy, for the functional form."""

    batch_stats: Any
    sync: State


class Normalized(NamedTuple):
    """The result of a policy for one call."""

    y: jax.Array  # the shape of x
    moments: Moments  # `[C]` or `[groups, C]`; they move the running statistics.
    state: State


@runtime_checkable
class Policy(Protocol):
    """A way to synchronise statistics; equal objects are the same policy."""

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns the first state of a layer; empty if the policy needs none.

        `shape` is the shape of the channels. Leaves under `own` and `said` are per
        worker and have one more axis in front. All other leaves are the same for all
        workers.
        """
        ...

    def normalize(self, call: Call, state: State) -> Normalized:
        """Returns the output of a layer in training, its moments and the new state."""
        ...


def nothing(call: Call) -> Moments:
    """Returns moments of zero examples, `[C]`, which do not move running statistics."""
    dtype = call.how.dtype or reduction.reduction_dtype(call.x.dtype)
    mean = jnp.zeros([call.x.shape[a] for a in call.how.feature_axes], dtype)
    real = jnp.zeros_like(mean, reduction.real_dtype(dtype))
    return Moments(real, mean, real, mean)


def init_state(policy: Policy | None, shape: tuple[int, ...], dtype: Any) -> State:
    """Returns the first state of a layer with that policy; empty without a policy.

    Raises:
      TypeError: if `policy` is not a policy.
    """
    if policy is None:
        return {}
    _check_policy(policy)
    return policy.init(shape, jnp.dtype(dtype))


def normalize(policy: Policy, call: Call, state: State) -> Normalized:
    """Checks the arguments, and normalises by the policy.

    The new state has the dtypes of the old one.

    Raises:
      TypeError: if `policy` is not a policy.
      ValueError: if the call has groups of devices, or if the state has another
        structure or number of workers than the policy needs.
    """
    _check_policy(policy)
    if call.how.devices is not None and call.how.devices.groups is not None:
        raise ValueError(
            "`sync` decides which devices share statistics, got `axis_index_groups` or "
            "`group_size` as well; leave them out, or use `Group(size)`."
        )
    shape = tuple(call.x.shape[a] for a in call.how.feature_axes)
    expected = jax.eval_shape(lambda: policy.init(shape, jnp.dtype(jnp.float32)))
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise ValueError(
            f"The state of {policy!r} must be one that its `init` made, got "
            f"{jax.tree.structure(state)}; give `WithSync(batch_stats, state)`, or let "
            "Flax create the collection `batch_sync` anew."
        )
    rows = 1 if call.examples is None else call.workers
    for part in ("own", "said"):
        for leaf in jax.tree.leaves(state.get(part)):
            if leaf.shape[0] != rows:
                raise ValueError(
                    f"The state of {policy!r} must have a row for each of the {rows} "
                    f"workers here, got {leaf.shape[0]}; make it with "
                    "`jaxbn.sync_policies.for_workers`, and split it over the devices "
                    "with `partition_specs`."
                )
    y, moments, new = policy.normalize(call, state)
    new = jax.tree.map(lambda part, old: part.astype(old.dtype), new, state)
    return Normalized(y, moments, new)


def _check_policy(policy: Any) -> None:
    if not isinstance(policy, Policy) or isinstance(policy, type):
        raise TypeError(
            f"`sync` must be a policy such as `jaxbn.sync_policies.Local()`, got "
            f"{policy!r}."
        )
    try:
        hash(policy)
    except TypeError as error:
        raise TypeError(
            f"`sync` must be hashable, got {policy!r}; make it a frozen dataclass."
        ) from error
