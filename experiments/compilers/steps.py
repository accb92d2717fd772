"""The programs: SGD training steps, inference, and a layer between convolutions."""

import contextlib
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

from experiments.compilers import cases, targets
from experiments.networks import inception, models, norms

AXIS = "data"
GROUP = 8  # The devices that share statistics if `statistics` is "groups".
LEARNING_RATE = 0.1


class Layer(nn.Module):
    """A normalisation between two 1x1 convolutions."""

    norm: models.Norm
    features: tuple[int, int] = (256, 64)
    activation: str = "relu"
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(
            nn.Conv, kernel_size=(1, 1), use_bias=False, dtype=self.dtype
        )
        x = conv(self.features[0])(x)
        norm = self.norm(activation=self.activation, dtype=self.dtype)
        return conv(self.features[1])(norm(x, use_running_average=not train))


class Program(NamedTuple):
    """A network, and the images of one device."""

    network: Callable[..., nn.Module]
    images: int
    shape: tuple[int, int, int]  # The shape of an image.
    kind: str = "training"


PROGRAMS = {
    "layer": Program(Layer, 64, (56, 56, 64), "layer"),
    "small_network": Program(models.SmallNetwork, 32, (96, 96, 3)),
    "resnet50": Program(models.ResNet50, 64, (224, 224, 3)),
    "short_resnet": Program(
        functools.partial(models.ResNet50, blocks=(1, 1, 1, 1)), 8, (224, 224, 3)
    ),
    "bn_inception": Program(inception.BNInception, 64, (224, 224, 3)),
    "inference": Program(models.ResNet50, 64, (224, 224, 3), "inference"),
}


def lower(
    case: cases.Case, devices: list[Any] | None = None, donate: bool = True
) -> Any:
    """Lowers the program of a case, ready to be compiled.

    Args:
      case: the case to lower.
      devices: devices that replace those of the case's target.
      donate: True to donate the arguments that a step replaces.
    """
    program = PROGRAMS[case.program]
    if devices is None:
        devices = targets.devices(case.target, case.devices)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    network = _network(program, case)
    images = (case.images or program.images) * case.devices
    x = jax.ShapeDtypeStruct((images, *program.shape), case.dtype)
    init = functools.partial(network.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), x)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if _own_statistics(case):
        batch_stats = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((case.devices, *leaf.shape), leaf.dtype),
            batch_stats,
        )

    arguments: tuple[Any, ...] = (params, batch_stats, x)
    if program.kind == "training":
        arguments += (jax.ShapeDtypeStruct((images,), jnp.int32),)
    elif program.kind == "layer":
        infer = _FUNCTIONS["inference"](network, case)
        y = jax.eval_shape(infer, params, variables.get("batch_stats", {}), x)
        arguments += (y,)
    function = _FUNCTIONS[program.kind](network, case)
    specs = (P(), P(AXIS) if _own_statistics(case) else P(), P(AXIS), P(AXIS))
    specs = specs[: len(arguments)]
    if case.style == "shard_map":
        function = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=_OUTPUTS[program.kind](specs[1]),
            check_vma=case.statistics != "groups",  # It does not support groups.
        )
    arguments = tuple(
        jax.tree.map(functools.partial(_on, mesh, spec), tree)
        for spec, tree in zip(specs, arguments, strict=True)
    )
    donated = _DONATED[program.kind] if donate else ()
    jitted = jax.jit(function, donate_argnums=donated)
    known = case.style == "jit_mesh"
    with jax.set_mesh(mesh) if known else contextlib.nullcontext():
        return jitted.lower(*arguments)


def initial(case: cases.Case) -> tuple[Any, Any]:
    """Returns the initial parameters and running statistics of the network."""
    program = PROGRAMS[case.program]
    x = jnp.zeros((2, *program.shape), case.dtype)
    init = jax.jit(_network(program, case).init, static_argnames="train")
    variables = init(jax.random.key(0), x, train=False)
    return variables["params"], variables.get("batch_stats", {})


def _on(mesh: Mesh, spec: P, leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _own_statistics(case: cases.Case) -> bool:
    """Returns True if running statistics differ from device to device."""
    return case.style == "shard_map" and case.statistics != "global"


def _network(program: Program, case: cases.Case) -> nn.Module:
    layer, fields = norms.ALL[case.norm]
    options: dict[str, Any] = {}
    if case.style == "shard_map" and case.statistics != "local":
        options["axis_name"] = AXIS
    if case.statistics == "groups":
        if case.style != "shard_map":
            raise ValueError(f"groups of devices need shard_map, got {case.style}.")
        options["group_size"] = GROUP
    if case.statistics == "local" and case.style == "jit_mesh":
        options["group_size"] = "local"
    return program.network(
        norm=functools.partial(layer, **options),
        activation=case.activation,
        dtype=jnp.dtype(case.dtype) if case.parameters == "float32" else None,
        **fields,
    )


def _computing(params: Any, case: cases.Case) -> Any:
    """Returns the parameters in the dtype in which the network takes them."""
    if case.parameters == "float32":
        return params
    return jax.tree.map(lambda leaf: leaf.astype(case.dtype), params)


def _apply(network: nn.Module, case: cases.Case) -> Callable[..., Any]:
    """Returns the function `params, batch_stats, x -> y, new batch_stats`.

    It calls the network in training mode.
    """

    def apply(params, batch_stats, x):
        if _own_statistics(case):
            batch_stats = jax.tree.map(lambda leaf: leaf[0], batch_stats)
        variables = {"params": _computing(params, case), "batch_stats": batch_stats}
        y, new = network.apply(variables, x, train=True, mutable=["batch_stats"])
        batch_stats = new.get("batch_stats", {})
        if _own_statistics(case):
            batch_stats = jax.tree.map(lambda leaf: leaf[None], batch_stats)
        return y, batch_stats

    return apply


def _spread(tree: Any, case: cases.Case) -> Any:
    """Marks parameters as varying, so that each device has its own gradients."""
    if case.style != "shard_map":
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, AXIS, to="varying"), tree)


def _training(network: nn.Module, case: cases.Case) -> Callable[..., Any]:
    apply = _apply(network, case)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def step(params, batch_stats, x, labels):
        def loss(params):
            logits, new = apply(params, batch_stats, x)
            return cross_entropy(logits.astype(jnp.float32), labels).mean(), new

        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, new), gradients = gradient(_spread(params, case))
        if case.style == "shard_map":
            value, gradients = jax.lax.pmean((value, gradients), AXIS)
        moved = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients)
        return moved, new, value

    return step


def _layer(network: nn.Module, case: cases.Case) -> Callable[..., Any]:
    apply = _apply(network, case)

    def both(params, batch_stats, x, dy):
        def given(params, x):
            return apply(params, batch_stats, x)

        y, vjp, new = jax.vjp(given, _spread(params, case), x, has_aux=True)
        dparams, dx = vjp(dy)
        if case.style == "shard_map":
            dparams = jax.lax.psum(dparams, AXIS)
        return dparams, new, y, dx

    return both


def _inference(network: nn.Module, case: cases.Case) -> Callable[..., Any]:
    def infer(params, batch_stats, x):
        variables = {"params": _computing(params, case), "batch_stats": batch_stats}
        return network.apply(variables, x, train=False)

    return infer


_FUNCTIONS = {"training": _training, "layer": _layer, "inference": _inference}
_DONATED = {"training": (0, 1), "layer": (1, 2, 3), "inference": ()}
_OUTPUTS = {  # The specs of the results, given the spec of the running statistics.
    "training": lambda stats: (P(), stats, P()),
    "layer": lambda stats: (P(), stats, P(AXIS), P(AXIS)),
    "inference": lambda stats: P(AXIS),
}
