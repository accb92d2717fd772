"""One training, of a Linen or of an NNX model, with the same numbers in both."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

import jaxbn.nnx
from jaxbn import linen, parallel, training

RNG = np.random.default_rng(0)
BATCH = {
    "x": (1 + RNG.standard_normal((16, 4))).astype(np.float32),
    "y": RNG.integers(3, size=16),
}
PADDED = {
    "x": np.concatenate([BATCH["x"], np.full((8, 4), 7, np.float32)]),
    "y": np.concatenate([BATCH["y"], np.zeros(8, int)]),
    "mask": np.arange(24) < 16,
}
BATCHES = pytest.mark.parametrize(
    "batch",
    [pytest.param(BATCH, marks=pytest.mark.exhaustive), PADDED],
    ids=["whole", "padded"],
)
PARTS = pytest.mark.parametrize(
    "micro_batches", [1, pytest.param(2, marks=pytest.mark.exhaustive)]
)


def loss_fn(model, batch, train):
    logits = model(batch["x"], train, batch.get("mask")).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return {"loss": loss, "accuracy": logits.argmax(-1) == batch["y"]}


class Net(nn.Module):
    batch_norm: bool = True
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Dense(8, dtype=self.dtype, name="first")(x)
        if self.batch_norm:
            mask = None if mask is None else mask[:, None]
            norm = linen.BatchNorm(
                not train,
                momentum=0.5,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name="norm",
            )
            x = norm(x, mask=mask)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, dtype=self.dtype, name="last")(x)


class Model(nnx.Module):
    """`Net` with the same parameters."""

    def __init__(self, batch_norm=True, dropout=0.0, axis_name=None, dtype=None):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 8, dtype=dtype, rngs=rngs)
        if batch_norm:
            self.norm = jaxbn.nnx.BatchNorm(
                8, momentum=0.5, axis_name=axis_name, dtype=dtype, rngs=rngs
            )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(8, 3, dtype=dtype, rngs=rngs)
        params = init_variables(Net())["params"]
        for layer, name in ((self.first, "first"), (self.last, "last")):
            layer.kernel[...] = jnp.array(params[name]["kernel"])

    def __call__(self, x, train, mask=None):
        x = self.first(x)
        if hasattr(self, "norm"):
            x = self.norm(x, mask=None if mask is None else mask[:, None])
        return self.last(self.dropout(nnx.relu(x)))


@functools.cache
def init_variables(net):
    """Returns the variables; they are cached, as compiling takes longer than a test."""
    init = jax.jit(functools.partial(net.init, train=False))
    return init(jax.random.key(0), BATCH["x"])


class ScaledState(training.TrainState):
    dynamic_scale: DynamicScale = DynamicScale()


class Linen:
    """The training of `Net`; its methods make and take steps."""

    train = staticmethod(training.make_train_step)
    multi = staticmethod(training.make_multi_step)

    def __init__(self, tx=None, dynamic_scale=None, **options):
        net = Net(**options)
        variables = init_variables(net.clone(axis_name=None))
        tx = tx or optax.sgd(0.1)
        if dynamic_scale is None:
            self.state = training.TrainState.create(net.apply, variables, tx)
        else:
            self.state = ScaledState.create(
                net.apply, variables, tx, dynamic_scale=dynamic_scale
            )

    def take(self, step, batch):
        """Takes a step and returns its metrics."""
        self.state, metrics = step(self.state, batch)
        return metrics

    def mapped(self, style, step, mesh):
        """Returns a step whose batch is split over four devices."""
        if style == "pmap":
            stacked = jax.pmap(step, in_axes=(None, 0), axis_name="d")
        elif style == "vmap":
            stacked = jax.vmap(step, (None, 0), axis_name="d")
        else:
            specs = {"in_specs": (jax.P(), jax.P("d")), "out_specs": jax.P()}
            checked = style == "shard_map"
            return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=checked, **specs))
        return lambda state, batch: first(stacked(state, split(batch)))

    def evaluate(self, batch):
        return training.make_eval_step(loss_fn)(self.state, batch)

    @property
    def params(self):
        return jax.tree.map(np.array, dict(self.state.params))

    @property
    def batch_stats(self):
        return jax.tree.map(np.array, self.state.batch_stats)

    @property
    def opt_state(self):
        return jax.tree.map(np.array, self.state.opt_state)

    @property
    def step(self):
        return int(self.state.step)

    @property
    def dynamic_scale(self):
        return self.state.dynamic_scale


class Nnx:
    """The training of `Model`."""

    train = staticmethod(training.make_nnx_train_step)
    multi = staticmethod(training.make_nnx_multi_step)

    def __init__(self, tx=None, dynamic_scale=None, **options):
        self.model = Model(**options)
        tx = tx or optax.sgd(0.1)
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)
        if dynamic_scale is not None:
            self.optimizer.dynamic_scale = training.LossScale(dynamic_scale)

    def take(self, step, batch):
        return step(self.model, self.optimizer, batch)

    def mapped(self, style, step, mesh):
        if style in ("pmap", "vmap"):
            same = nnx.StateAxes({...: None})
            transform = {"pmap": nnx.pmap, "vmap": nnx.vmap}[style]
            stacked = transform(step, in_axes=(same, same, 0), axis_name="d")
            stacked = nnx.jit(stacked) if style == "vmap" else stacked
            return lambda model, optimizer, batch: first(
                stacked(model, optimizer, split(batch))
            )
        specs = {"in_specs": (jax.P(), jax.P(), jax.P("d")), "out_specs": jax.P()}
        checked = style == "shard_map"
        # Outside jit it would compile each operation by itself, for all devices.
        return nnx.jit(nnx.shard_map(step, mesh=mesh, check_vma=checked, **specs))

    def evaluate(self, batch):
        return training.make_nnx_eval_step(loss_fn)(self.model, batch)

    @property
    def params(self):
        return self._numbers(nnx.Param)

    @property
    def batch_stats(self):
        return self._numbers(nnx.BatchStat)

    def _numbers(self, kind):
        values = nnx.to_pure_dict(nnx.state(self.model, kind))
        return jax.tree.map(np.array, values)

    @property
    def opt_state(self):
        return jax.tree.map(
            np.array, nnx.to_pure_dict(nnx.state(self.optimizer.opt_state))
        )

    @property
    def step(self):
        return int(self.optimizer.step[...])

    @property
    def dynamic_scale(self):
        return self.optimizer.dynamic_scale.get_value()


APIS = pytest.mark.parametrize("api", [Linen, Nnx], ids=["linen", "nnx"])


def split(batch):
    """Returns the batch with a leading axis of four devices."""
    return jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), batch)


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def stacked(batch, steps):
    """Returns the batch of a multi-step that takes the same batch in every step."""
    return jax.tree.map(lambda array: np.stack([array] * steps), batch)


def over_devices(training_, style, batch, **options):
    """Takes a step whose batch is split over four devices."""
    mesh = parallel.data_mesh(jax.devices()[:4], axis_name="d")
    if style != "jit":
        step = training_.train(loss_fn, axis_name="d", **options)
        return training_.take(training_.mapped(style, step, mesh), batch)
    if isinstance(training_, Linen):
        training_.state = parallel.replicate(training_.state, mesh)
    else:
        for module in (training_.model, training_.optimizer):
            nnx.update(module, parallel.replicate(nnx.state(module), mesh))
    step = training_.train(loss_fn, **options)
    return training_.take(step, parallel.shard_batch(batch, mesh))
