"""The exchange of messages between workers, after a training step.

A policy may send messages to the other workers without waiting for them in the step.
The messages of all layers are then summed in one collective after the step. This module
is the interface between such a policy and the training step.

**The policy** has two entries in its state, which hold arrays of the same names:

- `sent` is the message of this worker, and has an axis of workers in front.
- `received` is the sum of the messages that all workers sent in the last step.

`init` returns zeros for both. `normalize` reads `received`, and returns its message as
the new `sent`. This policy subtracts the mean of all workers in the last step, and
divides by the worker's own standard deviation:

  >>> import dataclasses
  >>> from jaxbn.sync import Normalized, for_workers
  >>> @dataclasses.dataclass(frozen=True)
  ... class MeanOfLastStep:
  ...     def init(self, shape, dtype):
  ...         received = {"mean": jnp.zeros(shape, dtype)}
  ...         return {"sent": {"mean": received["mean"][None]}, "received": received}
  ...     def normalize(self, call, state):
  ...         mean = state["received"]["mean"] / call.workers
  ...         def merge(own):
  ...             used = jnp.broadcast_to(mean, own.mean.shape)
  ...             return own._replace(mean=used), {"mean": own.mean}
  ...         y, sent = call.by(merge)
  ...         return Normalized(y, call.no_moments(), {**state, "sent": sent})

A message may also depend on the backward pass, which runs after `normalize` returned.
The policy then passes the given `sent` through a function with a `jax.custom_vjp`, and
the cotangent that this function returns for it is the message. A worker sends the sum
of two messages: the `sent` that `normalize` returned, and the cotangent of the `sent`
that the step was given. Name an array of the backward pass `gradient` or `product`, so
that `scale_messages` finds it. `Stale` is an example. It also allows two calls of a
layer in a step: the second call adds its message to that of the first, and the first
sets `received` to 0, so that it is read once.

**The training step** does four things. The steps of `jaxbn.training` do them already.

1. It differentiates the loss with respect to `messages_of(states)` as well.
2. Inside the loss it gives the layers `with_messages(states, messages)`.
3. After the gradient it calls `exchange` with the new states and the cotangents.
4. If it scales the loss, it scales the states with `scale_messages` before the step,
   and back after the exchange.

`states` is any tree that holds the states of policies: `BatchStats`, variables of
Linen, or a state of NNX. Here four workers are parts of a batch. Under shard_map the
workers are devices, and `exchange` takes the `axis_name`.

  >>> import jaxbn
  >>> policy = MeanOfLastStep()
  >>> @jax.jit
  ... def step(scale, stats, x):
  ...     def loss(scale, messages):
  ...         given = with_messages(stats, messages)
  ...         y, new = jaxbn.batch_norm_train(
  ...             x, scale, None, given, group_size=2, sync=policy
  ...         )
  ...         return jnp.sum(y**2), new
  ...     (grads, cotangents), new = jax.grad(loss, (0, 1), has_aux=True)(
  ...         scale, messages_of(stats)
  ...     )
  ...     return grads, exchange(new, cotangents)
  >>> stats = for_workers(jaxbn.init_batch_stats(1, sync=policy), 4)
  >>> grads, stats = step(jnp.ones(1), stats, jnp.arange(8.0)[:, None])
  >>> stats.sync["sent"]["mean"].ravel(), stats.sync["received"]["mean"]
  (Array([0.5, 2.5, 4.5, 6.5], dtype=float32), Array([14.], dtype=float32))

Without `exchange` no worker receives a message. Without the cotangents the workers
receive only the messages of forward passes. For GPUs, the steps of `jaxbn.training` put
an optimization barrier between all gradients and the exchange. Without it the compiler
may fuse the exchange with the backward pass of a layer, which then waits for it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core import reduction

_SENT, _RECEIVED = "sent", "received"
_FROM_BACKWARD_PASSES = ("gradient", "product")


def messages_of(tree: Any) -> dict[str, jax.Array]:
    """Returns the messages in the entries `sent`, by layer and name.

    A loss is differentiated with respect to them as well as to the parameters.

    Args:
      tree: a tree that holds the states of policies. All its other leaves are left out
        of the result.

    Example:
      >>> messages_of({"bn": {"sent": {"count": 1.0}, "received": {"count": 8.0}}})
      {'bn/count': 1.0}
    """
    return _entries(tree, _SENT)


def with_messages(tree: Any, messages: dict[str, jax.Array]) -> Any:
    """Returns the tree with other messages in the entries `sent`.

    Args:
      tree: a tree that holds the states of policies.
      messages: arrays in the form of `messages_of`.

    Example:
      >>> tree = {"bn": {"sent": {"count": 1.0}, "received": {"count": 8.0}}}
      >>> with_messages(tree, {"bn/count": 3.0})
      {'bn': {'received': {'count': 8.0}, 'sent': {'count': 3.0}}}
    """
    return _map_entries(_SENT, lambda key, leaf: messages.get(key, leaf), tree)


def exchange(
    tree: Any,
    cotangents: dict[str, jax.Array] | None = None,
    *,
    axis_name: reduction.AxisName | None = None,
) -> Any:
    """Sums the messages of all workers, and returns the states that received the sums.

    One `psum` serves all layers. No computation waits for its result before the next
    step. If the sums of a layer are not finite, its message becomes 0, and its
    `received` stays as the step wrote it.

    Args:
      tree: a tree with the states that the step has written.
      cotangents: cotangents of the messages that the step was given, in the form of
        `messages_of`. None if there was no backward pass.
      axis_name: axis or axes of the workers in pmap, shard_map or vmap. Without it the
        workers are the first axis of every message.

    Returns:
      The tree with the sums as `received`, and with the summed messages as `sent`.
      Structure, shapes and dtypes are unchanged.

    Example:
      >>> entries = {"sent": {"count": jnp.ones((2, 1))}, "received": {"count": 0.0}}
      >>> exchange({"bn": entries})["bn"]["received"]["count"]
      Array([2.], dtype=float32)
    """
    sent = messages_of(tree)
    if cotangents is not None:
        sent = {key: leaf + cotangents[key] for key, leaf in sent.items()}
    sums = _summed(sent, axis_name)
    layers: dict[str, list[jax.Array]] = {}
    for key, leaf in sums.items():
        layers.setdefault(_layer(key), []).append(jnp.all(jnp.isfinite(leaf)))
    finite = {layer: jnp.all(jnp.array(each)) for layer, each in layers.items()}

    def send(key: str, _: jax.Array) -> jax.Array:
        return jnp.where(finite[_layer(key)], sent[key], 0)

    def receive(key: str, leaf: jax.Array) -> jax.Array:
        return jnp.where(finite[_layer(key)], sums[key], leaf)

    return _map_entries(_RECEIVED, receive, _map_entries(_SENT, send, tree))


def scale_messages(tree: Any, factor: jax.typing.ArrayLike) -> Any:
    """Multiplies all sums of backward passes in the states by a factor.

    Between two steps the states hold sums of the unscaled loss, because the scale may
    change. The sums of backward passes are all entries named `gradient` or `product`.

    Args:
      tree: a tree that holds the states of policies.
      factor: the scale of the loss before a step, and 1 / scale after the exchange.

    Example:
      >>> scale_messages({"bn": {"sent": {"count": 2.0, "gradient": 3.0}}}, 10.0)
      {'bn': {'sent': {'count': 2.0, 'gradient': 30.0}}}
    """

    def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf * factor if _names(path)[-1] in _FROM_BACKWARD_PASSES else leaf

    return jax.tree_util.tree_map_with_path(scale, tree)


def _summed(
    sent: dict[str, jax.Array], axis_name: reduction.AxisName | None
) -> dict[str, jax.Array]:
    """Returns the sums over all workers, with one collective per dtype."""
    alike: dict[Any, list[str]] = {}
    for key, leaf in sent.items():
        alike.setdefault((leaf.shape[0], leaf.dtype), []).append(key)
    sums = {}
    for (workers, _), keys in alike.items():
        rows = jnp.concatenate([sent[key].reshape(workers, -1) for key in keys], 1)
        row = jnp.sum(rows, 0)
        row = row if axis_name is None else jax.lax.psum(row, axis_name)
        start = 0
        for key in keys:
            shape, size = sent[key].shape[1:], sent[key].size // workers
            sums[key] = row[start : start + size].reshape(shape)
            start += size
    return sums


def _entries(tree: Any, kind: str) -> dict[str, jax.Array]:
    """Returns the leaves under `sent` or `received`; both have the same keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keys = ((_key(path, kind), leaf) for path, leaf in leaves)
    return {key: leaf for key, leaf in keys if key is not None}


def _map_entries(
    kind: str, function: Callable[[str, jax.Array], jax.Array], tree: Any
) -> Any:
    """Returns the tree with a function applied to the leaves under an entry."""

    def apply(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        key = _key(path, kind)
        return leaf if key is None else function(key, leaf)

    return jax.tree_util.tree_map_with_path(apply, tree)


def _key(path: tuple[Any, ...], kind: str) -> str | None:
    """Returns layer and name, such as "block/bn/count", of a leaf under an entry.

    Returns None if the leaf is not under the entry `kind`.
    """
    names = _names(path)
    if kind not in names[:-1]:
        return None
    # In NNX `sent` and `received` are in different variables of the layer.
    left_out = (kind, "batch_sync", "own_batch_sync", "value")
    return "/".join(name for name in names if name not in left_out)


def _layer(key: str) -> str:
    return key.rpartition("/")[0]


def _names(path: tuple[Any, ...]) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path]
