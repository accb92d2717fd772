"""A network, a batch and a loss for tests of the training steps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxbn.nnx
from jaxbn import training
from jaxbn.linen import BatchNorm

RNG = np.random.default_rng(0)

BATCH = {
    "x": RNG.standard_normal((12, 4)).astype(np.float32),
    "y": RNG.integers(3, size=12),
}


class Net(nn.Module):
    batch_norm: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Dense(8)(x)
        if self.batch_norm:
            mask = None if mask is None else mask[:, None]
            x = BatchNorm(momentum=0.5)(x, use_running_average=not train, mask=mask)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def loss_fn(model, batch, train):
    logits = model(batch["x"], train=train, mask=batch.get("mask"))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return {"loss": loss, "accuracy": logits.argmax(-1) == batch["y"]}


@functools.cache
def make_variables(net):
    """Returns the variables; they are cached, as compiling takes longer than a test."""
    init = jax.jit(functools.partial(net.init, train=False))
    return init(jax.random.key(0), BATCH["x"])


def make_state(net=None, tx=None):
    net = net or Net()
    variables = make_variables(net)
    return training.TrainState.create(net.apply, variables, tx or optax.sgd(0.1))


class WithOtherState(nnx.Module):
    """A model with a counter and a power iteration beside the layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.seen = nnx.BatchStat(jnp.int32(0))
        self.spectral = nnx.SpectralNorm(nnx.Linear(4, 5, rngs=rngs), rngs=rngs)
        self.norm = jaxbn.nnx.BatchNorm(5, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        self.seen[...] += len(x)
        return self.norm(self.spectral(x, update_stats=True))
