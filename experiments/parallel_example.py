"""Trains a network on eight devices in every parallel style and prints statistics."""

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxbn import linen, parallel, training

jax.config.update("jax_num_cpu_devices", 8)


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(axis_name=self.axis_name)(x, use_running_average=not train)
        return nn.Dense(1)(nn.relu(nn.Dense(16)(x)))


def loss_fn(model, batch, train):
    return {"loss": (model(batch["x"], train=train)[..., 0] - batch["x"].sum(-1)) ** 2}


mesh, whole, part = parallel.data_mesh(axis_name="d"), jax.P(), jax.P("d")
on_shards = {"mesh": mesh, "in_specs": (whole, part), "out_specs": whole}
each = {"axis_name": "d", "in_axes": (None, 0), "out_axes": None}
options = {jax.jit: {}, jax.shard_map: on_shards, jax.pmap: each, jax.vmap: each}
for style, arguments in options.items():
    axis_name = "d" if arguments else None  # Under jit, statistics are always global.
    net, data = Net(axis_name), 3 + np.random.default_rng(0).normal(size=(20, 64, 4))
    variables = net.init(jax.random.key(0), data[0], train=False)
    state = training.TrainState.create(net.apply, variables, optax.sgd(0.01))
    step = style(training.make_train_step(loss_fn, axis_name=axis_name), **arguments)
    shape = (20, 8, 8, 4) if arguments is each else (20, 64, 4)
    for x in data.astype(np.float32).reshape(shape):
        state, metrics = step(state, parallel.shard_batch({"x": x}, mesh))
    print(f"{style.__name__:10}", *state.batch_stats["BatchNorm_0"].values())
