"""Train and eval steps for Flax Linen models, with or without batch statistics.

The user writes one loss function for both; it returns values per example, never means:

  >>> import flax.linen as nn, optax
  >>> from jaxbn.linen import BatchNorm
  >>> class Net(nn.Module):
  ...     @nn.compact
  ...     def __call__(self, x, train):
  ...         x = nn.relu(BatchNorm()(nn.Dense(8)(x), use_running_average=not train))
  ...         return nn.Dense(2)(x)
  >>> def loss_fn(model, batch, train):
  ...     logits = model(batch["x"], train=train)
  ...     loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
  ...     return {"loss": loss, "accuracy": logits.argmax(-1) == batch["y"]}

  >>> batch = {"x": jnp.eye(4), "y": jnp.array([0, 1, 0, 1])}
  >>> net = Net()
  >>> variables = net.init(jax.random.key(0), batch["x"], train=False)
  >>> state = TrainState.create(net.apply, variables, optax.sgd(0.1))
  >>> state, metrics = make_train_step(loss_fn)(state, batch)
  >>> metrics = make_eval_step(loss_fn)(state, batch)
  >>> int(metrics["accuracy"].count)
  4

A batch may hold a boolean `mask` of the shape of those values. Only True examples count
in loss, gradient and metrics, so a padded last batch is exact; pass it on to the
model's `BatchNorm` layers as well. Pad with finite numbers: a layer before the first
normalisation would multiply a NaN by its zero gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxbn import metrics as metrics_lib
from jaxbn.core import sync

Batch = Mapping[str, Any]


class Model(Protocol):
    """The model with its variables bound: call it as the module itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class LossFn(Protocol):
    """Values per example, "loss" among them; the other names are up to the user."""

    def __call__(
        self, model: Model, batch: Batch, train: bool
    ) -> Mapping[str, jax.Array]: ...


class TrainState(struct.PyTreeNode):
    """Everything that one step of training reads and writes.

    Attributes:
      step: steps taken, int32.
      params: the model's parameters.
      batch_stats: its running statistics; empty for a model without any.
      opt_state: state of `tx`.
      key: source of the dropout keys, one per step.
      apply_fn: the model's `apply`.
      tx: the optimiser.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    @classmethod
    def create(
        cls,
        apply_fn: Callable[..., Any],
        variables: Mapping[str, Any],
        tx: optax.GradientTransformation,
        *,
        key: jax.Array | None = None,
    ) -> "TrainState":
        """State before the first step.

        Copies `variables`: a train step donates its state, and a caller may go on to
        use what it passed here.

        Args:
          apply_fn: the `apply` of a Linen module.
          variables: what its `init` returned: `params` and perhaps `batch_stats`.
          tx: any optax transformation.
          key: for dropout; default `jax.random.key(0)`.

        Raises:
          ValueError: if `variables` holds a collection that a step would not keep.
        """
        unknown = set(variables) - {"params", "batch_stats"}
        if unknown:
            raise ValueError(
                "`variables` may hold the collections 'params' and 'batch_stats', got "
                f"also {sorted(unknown)}; leave those out."
            )
        variables = jax.tree.map(jnp.array, dict(variables))
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            # Copied: some optimisers keep the parameters themselves, and a donated
            # buffer may occur once.
            opt_state=jax.tree.map(jnp.array, tx.init(variables["params"])),
            key=jax.random.key(0) if key is None else jnp.array(key),
            apply_fn=apply_fn,
            tx=tx,
        )


def make_train_step(
    loss_fn: LossFn, *, axis_name: sync.AxisName | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics_lib.Metrics]]:
    """A jitted function from state and batch to new state and metrics.

    The gradient is that of the mean loss of the valid examples. The state is donated:
    use only the one returned. Compiled once per shape of batch.

    Args:
      loss_fn: called with `train=True`; dropout keys and the mutable `batch_stats` are
        taken care of. It may call the model several times, though not inside
        `jax.checkpoint`, `jax.vmap` or another transformation of its own.
      axis_name: axis or axes over which pmap, shard_map or vmap split the batch: loss,
        gradient and metrics are those of all shards together, exact for shards with
        unequal numbers of valid examples. Give the layers their `axis_name` as well.
        Under plain jit, with or without shardings, leave it out.

    Raises:
      ValueError: when called, if `loss_fn` returns no "loss", or values whose shape is
        not that of the batch's `mask`.
    """
    return jax.jit(_train_step(loss_fn, axis_name), donate_argnums=0)


def make_multi_step(
    loss_fn: LossFn, *, axis_name: sync.AxisName | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics_lib.Metrics]]:
    """As `make_train_step`, for k steps under `lax.scan` in one call.

    Every array of the batch has a leading axis of size k; metrics are added up over the
    steps.

    Args:
      loss_fn: as `make_train_step`.
      axis_name: as `make_train_step`.
    """
    step = _train_step(loss_fn, axis_name)

    def steps(
        state: TrainState, batches: Batch
    ) -> tuple[TrainState, metrics_lib.Metrics]:
        state, metrics = jax.lax.scan(step, state, batches)
        return state, jax.tree.map(lambda m: jnp.sum(m, 0, dtype=m.dtype), metrics)

    return jax.jit(steps, donate_argnums=0)


def make_eval_step(
    loss_fn: LossFn, *, axis_name: sync.AxisName | None = None
) -> Callable[[TrainState, Batch], metrics_lib.Metrics]:
    """A jitted function from state and batch to metrics; changes nothing.

    Args:
      loss_fn: called with `train=False`.
      axis_name: as `make_train_step`.

    Raises:
      ValueError: as `make_train_step`.
    """

    @jax.jit
    def eval_step(state: TrainState, batch: Batch) -> metrics_lib.Metrics:
        variables = _variables(state.params, state.batch_stats)

        def model(*args: Any, **kwargs: Any) -> Any:
            return state.apply_fn(variables, *args, **kwargs)

        metrics = metrics_lib.reduce(
            loss_fn(model, batch, train=False), batch.get("mask")
        )
        return _over_devices(metrics, axis_name)

    return eval_step


def weight_decay_mask(params: Any) -> Any:
    """True for every parameter but those named `scale` or `bias`.

    For `optax.add_decayed_weights(rate, mask=weight_decay_mask)`: decay of a scale or a
    bias only distorts it, decay of weights before a normalisation sets their effective
    learning rate.

    Example:
      >>> weight_decay_mask({"kernel": 1.0, "bias": 0.0, "bn": {"scale": 1.0}})
      {'bias': False, 'bn': {'scale': False}, 'kernel': True}
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        # The last name: boxes such as those of `nn.with_partitioning` add keys below.
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return not names or names[-1] not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)


def _train_step(
    loss_fn: LossFn, axis_name: sync.AxisName | None
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics_lib.Metrics]]:
    def train_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, metrics_lib.Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            sync.axis_size(axis_name)  # For its message.
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

        def objective(params: Any) -> tuple[jax.Array, tuple[Any, metrics_lib.Metrics]]:
            model = _TrainingModel(state, params, key)
            local = metrics_lib.reduce(
                loss_fn(model, batch, train=True), batch.get("mask")
            )
            metrics = _over_devices(local, axis_name)
            loss = local["loss"].total / jnp.maximum(metrics["loss"].count, 1)
            return loss, (model.batch_stats, metrics)

        params = _varying(state.params, axis_name)
        grads, (batch_stats, metrics) = jax.grad(objective, has_aux=True)(params)
        grads = _over_devices(grads, axis_name)
        updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def _over_devices(tree: Any, axis_name: sync.AxisName | None) -> Any:
    """Sums over the devices of a mapped axis."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _varying(params: Any, axis_name: sync.AxisName | None) -> Any:
    """Marks parameters as each device's own, so that their gradients are too.

    A checked shard_map would add up the gradients of replicated parameters by itself;
    this makes all styles alike.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    manual = jax.sharding.get_abstract_mesh().manual_axes  # Those of shard_map.
    names = tuple(name for name in names if name in manual)
    if not names:
        return params
    return jax.tree.map(lambda p: jax.lax.pcast(p, names, to="varying"), params)


class _TrainingModel:
    """Applies the model and carries its batch statistics from call to call."""

    def __init__(self, state: TrainState, params: Any, key: jax.Array):
        self._state = state
        self._params = params
        self._key = key
        self.batch_stats = state.batch_stats

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._key, key = jax.random.split(self._key)
        outputs, updates = self._state.apply_fn(
            _variables(self._params, self.batch_stats),
            *args,
            rngs={"dropout": key},
            mutable=["batch_stats"],
            **kwargs,
        )
        self.batch_stats = updates.get("batch_stats", self.batch_stats)
        return outputs


def _variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    return {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
