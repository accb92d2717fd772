"""Measures whole networks by normalisation: training step, memory and compilation."""

import functools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbn
from experiments.compilers import kept
from experiments.framework import interleaved
from experiments.networks import norms
from jaxbn import training


def depth() -> dict[str, Any]:
    """Measures the seconds to trace and to compile stacks of layers."""
    return {"depth": {str(number): compile_times(number) for number in (10, 50, 200)}}


def model(make: Callable[..., nn.Module], rounds: int) -> dict[str, Any]:
    """Measures the training step of one network."""
    return {"models": {make.__name__: model_step(make, rounds)}}


class _Layer(nn.Module):
    """A normalisation, an activation and a dense layer."""

    norm: Callable[..., nn.Module]
    activation: str

    @nn.compact
    def __call__(self, x, _=None):
        norm = self.norm(activation=self.activation)
        x = norm(x, use_running_average=False)
        return nn.Dense(x.shape[-1], use_bias=False)(x), None


class _Stack(nn.Module):
    """A stack of `depth` layers, written out or scanned.

    With a `policy` the backward pass recomputes them.
    """

    depth: int
    norm: Callable[..., nn.Module]
    activation: str = "relu"
    scanned: bool = False
    policy: Callable[..., Any] | None = None

    @nn.compact
    def __call__(self, x):
        layer = _Layer
        if self.policy is not None:
            layer = nn.remat(layer, policy=self.policy, prevent_cse=not self.scanned)
        if self.scanned:
            axes = {"params": 0, "batch_stats": 0}
            layer = nn.scan(layer, axes, split_rngs={"params": True}, length=self.depth)
            return layer(self.norm, self.activation)(x)[0]
        for _ in range(self.depth):
            x, _ = layer(self.norm, self.activation)(x)
        return x


def _gradient(net: nn.Module):
    def loss(params, batch_stats, x):
        variables = {"params": params, "batch_stats": batch_stats}
        y, new = net.apply(variables, x, mutable=["batch_stats"])
        return jnp.sum(y), new

    return jax.jit(jax.grad(loss, has_aux=True))


def _arguments(variables):
    return variables["params"], variables["batch_stats"]


def compile_times(depth: int, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Returns the median seconds to trace and to compile the gradient of a stack."""
    x = jnp.ones((32, 64))
    taken: dict[str, list[tuple[float, float]]] = {"jaxbn": [], "flax.linen": []}
    for _ in range(repeats):
        for name, norm in (("jaxbn", norms.JAXBN), ("flax.linen", norms.FLAX)):
            net = _Stack(depth, norm)
            variables = jax.eval_shape(net.init, jax.random.key(0), x)
            _, seconds = _compile(_gradient(net), *_arguments(variables), x)
            taken[name].append(seconds)
    medians = {name: np.median(values, 0).round(2) for name, values in taken.items()}
    return {
        name: {"trace": trace, "compile": compiled}
        for name, (trace, compiled) in medians.items()
    }


def _compile(function, *args) -> tuple[Any, tuple[float, float]]:
    """Returns the compiled function, and the seconds to trace and to compile it."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = function.lower(*args)
    traced = time.perf_counter()
    return lowered.compile(), (traced - start, time.perf_counter() - traced)


def memory(rounds: int, depth: int = 50, shape=(1024, 256)) -> dict[str, Any]:
    """Measures the memory of the gradient of a stack with leaky ReLU.

    Kept arrays and peak are given in activations per layer. The kept arrays and the
    times are those of the scanned form.
    """
    policy = jaxbn.remat_policy
    stacks = {
        "flax.linen": {"norm": norms.FLAX},
        "jaxbn": {"norm": norms.JAXBN},
        "jaxbn, in_place": {"norm": functools.partial(norms.JAXBN, in_place=True)},
        "jaxbn, recomputed": {"norm": norms.JAXBN, "policy": policy},
    }
    x = jnp.ones(shape)
    rows: dict[str, Any] = {}
    programs = {}
    for name, options in stacks.items():
        rows[name] = {}
        for form in ("written out", "scanned"):
            scanned = form == "scanned"
            net = _Stack(depth, activation="leaky_relu", scanned=scanned, **options)
            variables = jax.jit(net.init)(jax.random.key(0), x)
            step = _gradient(net).lower(*_arguments(variables), x).compile()
            peak = step.memory_analysis().temp_size_in_bytes
            rows[name][form] = round(peak / x.nbytes / depth, 2)
        rows[name]["kept"] = round(_kept(net, variables, x) / x.nbytes / depth, 2)
        call = functools.partial(step, *_arguments(variables), x)
        programs[name] = lambda call=call: jax.block_until_ready(call())
    taken = interleaved.seconds(programs, rounds)
    for name, values in taken.items():
        rows[name]["over_jaxbn"] = interleaved.ratio(values, taken["jaxbn"])
    return rows


def _kept(net, variables, x) -> int:
    """Returns the bytes of the activations that are kept for the backward pass."""

    def apply(params, x):
        return net.apply(variables | {"params": params}, x, mutable=["batch_stats"])[0]

    leaves = kept.kept(apply, variables["params"], x)
    activations = [leaf for leaf in leaves if leaf.shape[-2:] == x.shape]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in activations)


def model_step(model: Callable[..., nn.Module], rounds: int) -> dict[str, Any]:
    """Measures a training step with jaxbn, with Flax and without normalisation.

    "jaxbn, joined" is jaxbn with `ConvBatchNorm`.
    """
    images, size = (8, 128) if jax.default_backend() == "cpu" else (256, 224)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((images, size, size, 3)), jnp.float32)
    batch = {"x": x, "y": jnp.arange(images) % 10}

    def loss_fn(model, batch, train):
        logits = model(batch["x"], train=train)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return {"loss": cross_entropy(logits, batch["y"])}

    layers = {"jaxbn": norms.JAXBN, "jaxbn, joined": norms.JAXBN,
              "flax.linen": norms.FLAX, "none": norms.NONE}  # fmt: skip
    states, steps, taken = {}, {}, {name: [] for name in layers}
    for name, norm in layers.items():
        net = model(classes=10, norm=norm, joined=name == "jaxbn, joined")
        init = jax.jit(functools.partial(net.init, train=False))
        states[name] = training.TrainState.create(
            net.apply, init(jax.random.key(0), batch["x"]), optax.sgd(0.0)
        )
    for _ in range(3):
        for name, state in states.items():
            train_step = training.make_train_step(loss_fn)
            steps[name], seconds = _compile(train_step, state, batch)
            taken[name].append(seconds)

    rows, programs = {}, {}
    for name, step in steps.items():
        used, cost = step.memory_analysis(), step.cost_analysis()
        trace, compiled = np.median(taken[name], 0).round(1)
        rows[name] = {
            "images": images,
            "size": size,
            "trace_s": trace,
            "compile_s": compiled,
            "temporary_MB": round(used.temp_size_in_bytes / 1e6, 1),
            "accessed_MB": round(cost["bytes accessed"] / 1e6, 1),
        }

        def program(step=step, name=name):
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)

        programs[name] = program
    taken = interleaved.seconds(programs, rounds)
    for name, values in taken.items():
        rows[name]["over_jaxbn"] = interleaved.ratio(values, taken["jaxbn"])
    return rows
