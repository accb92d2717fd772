"""The training step of a small residual network with each policy."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.networks import models, policies
from jaxbn import linen, sync, training

AXIS = "data"
CLASSES = 10
POLICIES: dict[str, sync.Policy | None] = {
    "none": None,
    "Exact": policies.Exact(),
    "Group(2)": policies.Group(2),
    "Sampled(.5)": policies.Sampled(0.5),
    "Periodic(8)": policies.Periodic(8),
    "FrozenAfter(0)": sync.FrozenAfter(0),
    "Local": policies.Local(),
    "Stale, forward": sync.Stale(backward=False),
    "Stale": sync.Stale(),
}
"""With "none" every device has its own statistics, and its own running statistics."""


class Block(nn.Module):
    """A block of two 3x3 convolutions and a shortcut (He et al., 2015)."""

    conv: Callable[..., nn.Module]
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        y = self.conv(self.features, 3, self.stride)(x, train)
        if self.stride > 1:
            x = self.conv(self.features, 1, self.stride, activation=None)(x, train)
        return self.conv(self.features, 3)(y, train, residual=x)


class Network(nn.Module):
    """A ResNet for small images with one block per width and 12 normalised layers."""

    norm: models.Norm
    widths: tuple[int, ...] = (16, 32, 64, 128)

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(models.ConvNorm, norm=self.norm)
        x = conv(self.widths[0], 3)(x, train)
        for place, width in enumerate(self.widths):
            x = Block(conv, width, 2 if place else 1)(x, train)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class Setting(NamedTuple):
    """The sizes of the network and of the batch."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    size: int = 32  # The height and width of an image.
    images: int = 8  # The images per device.


class Step(NamedTuple):
    """A jitted step over a mesh, with its arguments."""

    function: Any  # state, batch -> state, metrics
    state: Any  # Arrays, or shapes if the step is abstract.
    batch: dict[str, Any]


def layers(setting: Setting) -> list[models.NormLayer]:
    """Returns the normalisation layers of the network."""
    network = Network(linen.BatchNorm, setting.widths)
    return models.norm_layers(network, setting.size)


def mesh_of(devices: Any) -> Mesh:
    """Returns a mesh with all devices in one axis."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def make(name: str, setting: Setting, mesh: Mesh, *, abstract: bool = False) -> Step:
    """Returns the step of a policy.

    Args:
      name: a name in `POLICIES`.
      setting: the sizes of the network and of the batch.
      mesh: the result of `mesh_of` for the devices of all processes.
      abstract: True for shapes instead of arrays, if devices are only described.
    """
    policy = POLICIES[name]
    norm = functools.partial(
        linen.BatchNorm, axis_name=None if policy is None else AXIS, sync=policy
    )
    net = Network(norm, setting.widths)

    def initial() -> training.TrainState:
        image = jnp.zeros((1, setting.size, setting.size, 3))
        variables = net.init(jax.random.key(0), image, train=False)
        tx = optax.sgd(0.1, momentum=0.9)
        state = training.TrainState.create(net.apply, variables, tx)
        return sync.for_workers(state, mesh.size)

    shapes = jax.eval_shape(initial)
    specs = sync.partition_specs(shapes, AXIS)
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    number = setting.images * mesh.size
    batch = {
        "x": jax.ShapeDtypeStruct((number, setting.size, setting.size, 3), np.float32),
        "y": jax.ShapeDtypeStruct((number,), np.int32),
    }
    split = NamedSharding(mesh, P(AXIS))
    # `check_vma` is off, because with "none" the running statistics of devices differ.
    function = jax.jit(
        jax.shard_map(
            training.make_train_step(_loss, axis_name=AXIS),
            mesh=mesh,
            in_specs=(specs, P(AXIS)),
            out_specs=(specs, P()),
            check_vma=False,
        ),
        donate_argnums=0,
    )
    if abstract:
        state = jax.tree.map(_placed, shapes, placed)
        return Step(
            function, state, {key: _placed(a, split) for key, a in batch.items()}
        )
    state = jax.jit(initial, out_shardings=placed)()
    rng = np.random.default_rng(0)
    x = rng.standard_normal(batch["x"].shape).astype(np.float32)
    y = rng.integers(CLASSES, size=number).astype(np.int32)
    arrays = {
        key: jax.make_array_from_callback(a.shape, split, a.__getitem__)
        for key, a in (("x", x), ("y", y))
    }
    return Step(function, state, arrays)


def _loss(model: Any, batch: Any, train: bool) -> dict[str, jax.Array]:
    logits = model(batch["x"], train=train)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return {"loss": cross_entropy(logits, batch["y"])}


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
