"""Compares the inference of whole networks with and without folding."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxbn
from experiments.framework import interleaved
from experiments.networks import inception, models, norms

NETWORKS = (models.ResNet50, inception.BNInception, models.SmallNetwork)
LAYERS = {"flax.linen": norms.FLAX, "jaxbn": norms.JAXBN}


def measure(rounds: int) -> dict[str, Any]:
    """Measures time, arrays and error of every network."""
    many = 8 if jax.default_backend() == "cpu" else 256
    return {
        "folded": {
            f"{make.__name__}, {images} images": network(make, rounds, images)
            for make in NETWORKS
            for images in (1, many)
        }
    }


def network(
    make: Callable[..., nn.Module], rounds: int, images: int, size: int = 64
) -> Any:
    """Measures one network on a batch of images of `size` by `size`."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((images, size, size, 3)), jnp.float32)
    nets = {name: make(classes=10, norm=norm) for name, norm in LAYERS.items()}
    variables = {name: _variables(net, x) for name, net in nets.items()}

    nets["folded"] = nets["jaxbn"]
    variables["folded"], report = jaxbn.fold(
        nets["jaxbn"], variables["jaxbn"], x, functools.partial(_call, train=False)
    )
    rows: dict[str, Any] = {}
    programs, outputs = {}, {}
    for name, net in nets.items():
        run = jax.jit(functools.partial(net.apply, train=False))
        outputs[name] = run(variables[name], x)
        leaves = jax.tree.leaves(variables[name])
        rows[name] = {
            "size": size,
            "arrays": len(leaves),
            "numbers": sum(leaf.size for leaf in leaves),
        }
        call = functools.partial(run, variables[name], x)
        programs[name] = lambda call=call: jax.block_until_ready(call())
    difference = jnp.max(jnp.abs(outputs["folded"] - outputs["jaxbn"]))
    rows["folded"]["error"] = float(difference / jnp.max(jnp.abs(outputs["jaxbn"])))
    rows["folded"]["layers"] = len(report.layers)
    rows["folded"]["into_others"] = sum(r.into is not None for r in report.layers)
    taken = interleaved.seconds(programs, rounds)
    for name, values in taken.items():
        rows[name]["over_folded"] = interleaved.ratio(values, taken["folded"])
    return rows


def _call(model: Any, x: jax.Array, train: bool) -> jax.Array:
    return model(x, train=train)


def _variables(net: nn.Module, x: jax.Array) -> Any:
    """Returns variables with the running statistics of one batch.

    They are the same as after a training step on this batch.
    """
    variables = jax.jit(functools.partial(net.init, train=False))(jax.random.key(0), x)
    apply = functools.partial(net.apply, train=True, mutable=["batch_stats"])
    return {**variables, **jax.jit(apply)(variables, x)[1]}
