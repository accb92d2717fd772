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

A batch may hold a boolean `mask` of the shape of those values. Only True examples count
in loss, gradient and metrics, so a padded last batch is exact. Pass the mask to the
model's `BatchNorm` layers as well. Pad with finite numbers: a layer before the first
normalisation would multiply a NaN by its zero gradient.

For NNX models use `make_nnx_train_step` and `make_nnx_eval_step`.

For mixed precision give the state a field `dynamic_scale`, as in Flax's ImageNet
example. The loss is then scaled. A step that overflows changes neither parameters nor
running statistics:

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

from jaxbn.training.finite import all_finite as all_finite
from jaxbn.training.finite import where_finite as where_finite
from jaxbn.training.frozen_mask import frozen_mask as frozen_mask
from jaxbn.training.gradient import Gradient as Gradient
from jaxbn.training.gradient import LossFn as LossFn
from jaxbn.training.gradient import value_and_grad as value_and_grad
from jaxbn.training.metrics import Metric as Metric
from jaxbn.training.metrics import Metrics as Metrics
from jaxbn.training.nnx_steps import make_nnx_eval_step as make_nnx_eval_step
from jaxbn.training.nnx_steps import make_nnx_train_step as make_nnx_train_step
from jaxbn.training.state import TrainState as TrainState
from jaxbn.training.steps import make_eval_step as make_eval_step
from jaxbn.training.steps import make_multi_step as make_multi_step
from jaxbn.training.steps import make_train_step as make_train_step
from jaxbn.training.weight_decay import weight_decay_mask as weight_decay_mask
