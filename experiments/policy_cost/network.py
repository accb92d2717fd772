"""The training step of the study: a small residual network, by policy."""

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

from experiments.networks import models
from jaxbn import linen, sync_policies, training

AXIS = "data"
CLASSES = 10
POLICIES: dict[str, sync_policies.Policy | None] = {
    "none": None,
    "Exact": sync_policies.Exact(),
    "Group(2)": sync_policies.Group(2),
    "Sampled(.5)": sync_policies.Sampled(0.5),
    "Periodic(8)": sync_policies.Periodic(8),
    "FrozenAfter(0)": sync_policies.FrozenAfter(0),
    "Local": sync_policies.Local(),
    "Stale, forward": sync_policies.Stale(backward=False),
    "Stale": sync_policies.Stale(),
}
"""In "none" every device has statistics of its own, running ones as well."""


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2015)."""

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
    """A ResNet for small images, of one block per width: 12 normalised layers."""

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
    """What is trained on what."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    size: int = 32  # Of an image, in each direction.
    images: int = 8  # Per device.


class Step(NamedTuple):
    """A jitted step over a mesh, and what it is called with."""

    function: Any  # state, batch -> state, metrics
    state: Any  # Arrays or, of an abstract mesh, shapes.
    batch: dict[str, Any]


def layers(setting: Setting) -> list[models.NormLayer]:
    """The normalisation layers of the network."""
    network = Network(linen.BatchNorm, setting.widths)
    return models.norm_layers(network, setting.size)


def mesh_of(devices: Any) -> Mesh:
    """All devices in one axis."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def make(name: str, setting: Setting, mesh: Mesh, *, abstract: bool = False) -> Step:
    """The step of a policy.

    Args:
      name: of `POLICIES`.
      setting: network and batch.
      mesh: of `mesh_of`, over the devices of all processes.
      abstract: for shapes instead of arrays, where devices are only described.
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
        return sync_policies.for_workers(state, mesh.size)

    shapes = jax.eval_shape(initial)
    specs = sync_policies.partition_specs(shapes, AXIS)
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    number = setting.images * mesh.size
    batch = {
        "x": jax.ShapeDtypeStruct((number, setting.size, setting.size, 3), np.float32),
        "y": jax.ShapeDtypeStruct((number,), np.int32),
    }
    split = NamedSharding(mesh, P(AXIS))
    # Unchecked: "none" has running statistics that differ from device to device.
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
