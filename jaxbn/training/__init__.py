"""Train and eval steps for Flax models, with or without batch statistics.

The user writes one loss function for both. It is called with the model, bound to its
variables as within Flax's `apply`, and returns values per example, never means:

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
in loss, gradient and metrics, so a padded last batch is exact; pass it on to the
model's `BatchNorm` layers as well. Pad with finite numbers: a layer before the first
normalisation would multiply a NaN by its zero gradient.

`make_nnx_train_step` and `make_nnx_eval_step` are those of NNX models.

In mixed precision the loss is scaled if the state has a field `dynamic_scale`, as that
of Flax's ImageNet example has. A step that overflows changes neither parameters nor
running statistics:

  >>> from flax.training.dynamic_scale import DynamicScale
  >>> class ScaledState(TrainState):
  ...     dynamic_scale: DynamicScale = DynamicScale()
  >>> scaled = ScaledState.create(net.apply, variables, optax.sgd(0.1))
  >>> scaled, metrics = make_train_step(loss_fn)(scaled, batch)

What should happen between gradient and update (its norm as a metric, leaving out a step
that is not finite) is written with the parts that a step is made of:

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
