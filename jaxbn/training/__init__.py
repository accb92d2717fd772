"""Train and eval steps for Flax models, with or without batch statistics.

The user writes one loss function for both steps. It takes the model, bound to its
variables as inside Flax's `apply`, and returns one value per example, never a mean:

  >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
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

`make_multi_step` makes several steps in one call. For NNX models use
`make_nnx_train_step`, `make_nnx_multi_step` and `make_nnx_eval_step`; they take the
same loss function and have the same options.

A batch may hold a boolean `mask` of the shape of those values. Only True examples count
in loss, gradient and metrics, so a padded last batch is exact. Pass the mask to the
model's `BatchNorm` layers as well. Pad with finite numbers: a layer before the first
normalisation would multiply a NaN by its zero gradient.

For mixed precision give the state a field `dynamic_scale`, as in Flax's ImageNet
example. The loss is then scaled. A step that overflows changes neither parameters nor
running statistics. An NNX optimiser has the scale as an attribute; see `LossScale`.

  >>> from flax.training.dynamic_scale import DynamicScale
  >>> class ScaledState(TrainState):
  ...     dynamic_scale: DynamicScale = DynamicScale()
  >>> scaled = ScaledState.create(net.apply, variables, optax.sgd(0.1))
  >>> scaled, metrics = make_train_step(loss_fn)(scaled, batch)

To do something between gradient and update, write a step from its parts. This one
returns the norm of the gradient and skips an update that is not finite:

  >>> @jax.jit
  ... def step(state, batch):
  ...     gradient = value_and_grad(loss_fn)(state, batch)
  ...     norm = optax.tree.norm(gradient.grads)
  ...     new = where_finite(gradient.grads, gradient.applied_to(state), state)
  ...     return new, gradient.metrics, norm
"""

from jaxbn.training._gradient import LossFn
from jaxbn.training._linen_steps import (
    Gradient,
    make_eval_step,
    make_multi_step,
    make_train_step,
    value_and_grad,
)
from jaxbn.training._loss_scale import LossScale, all_finite, where_finite
from jaxbn.training._masks import frozen_mask, weight_decay_mask
from jaxbn.training._metrics import Metric, Metrics
from jaxbn.training._nnx_steps import (
    make_nnx_eval_step,
    make_nnx_multi_step,
    make_nnx_train_step,
)
from jaxbn.training._state import TrainState

__all__ = [
    "Gradient",
    "LossFn",
    "LossScale",
    "Metric",
    "Metrics",
    "TrainState",
    "all_finite",
    "frozen_mask",
    "make_eval_step",
    "make_multi_step",
    "make_nnx_eval_step",
    "make_nnx_multi_step",
    "make_nnx_train_step",
    "make_train_step",
    "value_and_grad",
    "weight_decay_mask",
    "where_finite",
]
