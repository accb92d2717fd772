"""Batch Normalization of jaxbn and of other libraries, for benchmarks.

Each peer is a function of shape and dtype. It returns programs for the forward pass in
training, for forward and backward pass together, and in some cases for inference:

    forward() -> y, new running statistics
    both() -> y, new running statistics, (dx, dscale, dbias)
    inference() -> y

PyTorch updates its running statistics in place and returns none.

A peer whose library is not installed raises ImportError when it is called.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbn import linen


class Programs(NamedTuple):
    """The programs of a peer, without arguments; each returns once it is done."""

    forward: Callable[[], Any] | None = None
    both: Callable[[], Any] | None = None
    inference: Callable[[], Any] | None = None


def make_batch(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `x`, with mean 1 and standard deviation 1, and a cotangent.

    Both are float32 arrays of values that `dtype` represents exactly.
    """
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), np.float32)
    return tuple(np.asarray(jnp.asarray(a, dtype), np.float32) for a in (x + 1, dy))


def jax_programs(
    apply: Callable[..., tuple[jax.Array, Any]],
    scale: jax.Array,
    bias: jax.Array,
    x: jax.Array,
    dy: jax.Array,
) -> Programs:
    """Returns the programs of `apply(x, scale, bias) -> (y, state)`."""

    def both(x, dy, scale, bias):
        y, vjp, state = jax.vjp(apply, x, scale, bias, has_aux=True)
        return y, state, vjp(dy.astype(y.dtype))

    return Programs(
        _ready(apply, x, scale, bias),
        _ready(both, x, dy, scale, bias),
    )


class Jitted(NamedTuple):
    """A jitted function with its arguments."""

    function: Any
    args: tuple[Any, ...]

    def __call__(self):
        """Runs the function and waits for its result."""
        return jax.block_until_ready(self.function(*self.args))

    def text(self) -> str:
        """Returns the HLO text of the compiled program."""
        return self.function.lower(*self.args).compile().as_text()


def _ready(function: Callable[..., Any], *args: Any) -> Jitted:
    return Jitted(jax.jit(function), args)


def _linen(cls: Callable[..., nn.Module], shape, dtype, **options) -> Programs:
    x, dy = (jnp.asarray(a, dtype) for a in make_batch(shape, dtype))
    layer = cls(use_running_average=False, dtype=x.dtype, **options)
    variables = layer.init(jax.random.key(0), x)

    def apply(x, scale, bias):
        params = {"scale": scale, "bias": bias}
        return layer.apply(variables | {"params": params}, x, mutable=["batch_stats"])

    in_training = jax_programs(apply, *_affine(shape), x, dy)
    serving = cls(use_running_average=True, dtype=x.dtype, **options)
    return in_training._replace(inference=_ready(serving.apply, variables, x))


def _nnx(shape, dtype) -> Programs:
    x, dy = (jnp.asarray(a, dtype) for a in make_batch(shape, dtype))
    layer = nnx.BatchNorm(shape[-1], dtype=x.dtype, rngs=nnx.Rngs(0))
    graph, params, state = nnx.split(layer, nnx.Param, ...)

    def apply(x, scale, bias):
        given = jax.tree.map(lambda leaf: leaf, params)
        given["scale"], given["bias"] = nnx.Param(scale), nnx.Param(bias)
        module = nnx.merge(graph, given, state, copy=True)
        y = module(x, use_running_average=False)
        return y, nnx.state(module, nnx.BatchStat)

    return jax_programs(apply, *_affine(shape), x, dy)


def _haiku(shape, dtype) -> Programs:
    import haiku as hk

    x, dy = (jnp.asarray(a, dtype) for a in make_batch(shape, dtype))
    layer = hk.transform_with_state(
        lambda x: hk.BatchNorm(True, True, 0.99)(x, is_training=True)
    )
    _, state = layer.init(jax.random.key(0), x)

    def apply(x, scale, bias):
        full = (1,) * (x.ndim - 1) + scale.shape
        params = {"scale": scale.reshape(full), "offset": bias.reshape(full)}
        return layer.apply({"batch_norm": params}, state, None, x)

    # Haiku's own `init` makes parameters of this dtype.
    scale, bias = (a.astype(dtype) for a in _affine(shape))
    return jax_programs(apply, scale, bias, x, dy)


def _equinox(shape, dtype) -> Programs:
    """Returns the programs of Equinox in its own layout.

    Channels come first, and the layer takes one example at a time.
    """
    import equinox as eqx

    x, dy = (
        jnp.asarray(np.moveaxis(a, -1, 1), dtype) for a in make_batch(shape, dtype)
    )
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        shape[-1], "batch", mode="batch"
    )

    def apply(x, scale, bias):
        given = eqx.tree_at(lambda m: (m.weight, m.bias), layer, (scale, bias))
        return jax.vmap(
            given, in_axes=(0, None), out_axes=(0, None), axis_name="batch"
        )(x, state)

    return jax_programs(apply, *_affine(shape), x, dy)


def _torch(shape, dtype) -> Programs:
    """Returns the programs of PyTorch, with channels last in memory.

    It uses as many threads as there are CPUs, and a GPU if JAX uses one.
    """
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def tensor(array):
        made = torch.from_numpy(np.moveaxis(array, -1, 1).copy())
        made = made.to(device, getattr(torch, dtype))
        if made.ndim == 4:
            made = made.contiguous(memory_format=torch.channels_last)
        return made

    x, dy = (tensor(a) for a in make_batch(shape, dtype))
    x.requires_grad_()
    scale, bias = (torch.tensor(np.array(a), device=device) for a in _affine(shape))
    scale.requires_grad_()
    bias.requires_grad_()
    mean, var = (torch.full(shape[-1:], v, device=device) for v in (0.0, 1.0))

    def apply(training):
        given = mean, var, scale, bias
        return torch.nn.functional.batch_norm(x, *given, training=training)

    def without_gradient(training):
        with torch.no_grad():
            y = apply(training)
        wait()
        return y

    def both():
        y = apply(training=True)
        gradients = torch.autograd.grad(y, (x, scale, bias), dy)
        wait()
        return y, None, gradients

    return Programs(
        functools.partial(without_gradient, training=True),
        both,
        functools.partial(without_gradient, training=False),
    )


def limits(shape, dtype) -> Programs:
    """Returns programs that move the fewest bytes and compute almost nothing.

    The forward pass reads twice and writes once, the backward pass adds four reads and
    one write, and inference reads once and writes once. The arrays are float32 for
    every dtype, because conversions would take time. The second pass needs the sums of
    the first, so that the compiler cannot fuse the two.
    """
    size = shape[-1] * jnp.dtype(dtype).itemsize // 4
    x, dy = (jnp.asarray(a) for a in make_batch((*shape[:-1], size), "float32"))
    axes = tuple(range(x.ndim - 1))

    def forward(x):
        return x - jnp.mean(x, axes, keepdims=True)

    def both(x, dy):
        return forward(x), x - jnp.mean(x * dy, axes, keepdims=True) - dy

    return Programs(
        _ready(forward, x),
        _ready(both, x, dy),
        _ready(lambda x: 2 * x + 1, x),
    )


def multiply_add(shape, dtype) -> Programs:
    """Returns the least program of inference: one multiply-add in float32.

    It shows what XLA itself needs for the loop and the conversions.
    """
    x = jnp.asarray(make_batch(shape, dtype)[0], dtype)

    full = (1,) * (len(shape) - 1) + shape[-1:]
    scale, bias = (part.reshape(full) for part in _affine(shape))

    def inference(x, scale, bias):
        return (x.astype(jnp.float32) * scale + bias).astype(x.dtype)

    return Programs(inference=_ready(inference, x, scale, bias))


def _affine(shape) -> tuple[jax.Array, jax.Array]:
    return jnp.ones(shape[-1]), jnp.zeros(shape[-1])


LIMIT = "streaming limit"
MULTIPLY_ADD = "a x + b in XLA"
REFERENCES = {LIMIT: limits, MULTIPLY_ADD: multiply_add}
PEERS: dict[str, Callable[[tuple[int, ...], str], Programs]] = {
    "jaxbn": functools.partial(_linen, linen.BatchNorm),
    "flax.linen": functools.partial(_linen, nn.BatchNorm),
    "flax.nnx": _nnx,
    "haiku": _haiku,
    "equinox": _equinox,
    "torch": _torch,
}
