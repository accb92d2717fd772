"""Tests the README's claims about Flax, to remove those that become wrong."""

import contextlib
import functools
import io
import re

import flax.linen as nn
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.linen import BatchNorm

X = np.random.default_rng(0).standard_normal((8, 4, 3)).astype(np.float32)


def apply(cls, x, mask=None, **options):
    layer = cls(use_running_average=False, **options)
    variables = jax.jit(layer.init)(jax.random.key(0), X)
    apply = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))
    return apply(variables, x, mask=mask)


def kept_bytes(cls, dtype):
    """Returns the bytes of kept arrays of x's size, divided by the bytes of x."""
    x = jnp.ones((64, 8, 3), dtype)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        jax.ad_checkpoint.print_saved_residuals(lambda x: apply(cls, x)[0], x)
    sizes = {"f32": 4, "bf16": 2}
    kept = re.findall(r"^(\w+)\[64,8,3\]", text.getvalue(), re.MULTILINE)
    return sum(sizes[name] for name in kept) / jnp.dtype(dtype).itemsize


@pytest.mark.parametrize(
    ("dtype", "flax", "ours"), [(jnp.float32, 2, 1), (jnp.bfloat16, 4, 1)]
)
def test_kept_for_the_backward_pass(dtype, flax, ours):
    assert kept_bytes(nn.BatchNorm, dtype) == flax
    assert kept_bytes(BatchNorm, dtype) == ours


@pytest.mark.parametrize(("cls", "finite"), [(nn.BatchNorm, False), (BatchNorm, True)])
def test_batch_without_a_valid_element(cls, finite):
    _, updates = apply(cls, X, mask=np.zeros((8, 1, 1), bool))
    assert np.all(np.isfinite(updates["batch_stats"]["mean"])) == finite


@pytest.mark.parametrize(("cls", "finite"), [(nn.BatchNorm, False), (BatchNorm, True)])
def test_masked_nan_in_gradients(cls, finite):
    mask = np.arange(8)[:, None, None] < 5
    x = np.where(mask, X, np.nan)

    def loss(x):
        return jnp.sum(jnp.where(mask, apply(cls, x, mask)[0], 0) ** 3)

    assert np.all(np.isfinite(jax.jit(jax.grad(loss))(x)[:5])) == finite


@pytest.mark.parametrize(("cls", "exact"), [(nn.BatchNorm, False), (BatchNorm, True)])
def test_uneven_masks_over_devices(cls, exact):
    x = X + np.arange(8, dtype=np.float32)[:, None, None]
    mask = np.ones((8, 4, 1), bool)
    mask[0, 1:] = False
    _, updates = jax.vmap(
        lambda x, mask: apply(cls, x, mask, axis_name="d", momentum=0.0),
        axis_name="d",
    )(x, mask)
    truth = x[np.broadcast_to(mask, x.shape)].reshape(-1, 3).mean(0)
    mean = updates["batch_stats"]["mean"][0]
    assert np.allclose(mean, truth, atol=1e-5) == exact


@pytest.mark.parametrize(("cls", "right"), [(nn.BatchNorm, False), (BatchNorm, True)])
def test_variance_at_a_large_mean(cls, right):
    _, updates = apply(cls, 1e4 + X, momentum=0.0)
    var = updates["batch_stats"]["var"]
    x = (1e4 + X).astype(np.float64).reshape(-1, 3)
    ddof = int(cls is BatchNorm)
    assert np.allclose(var, x.var(0, ddof=ddof), rtol=1e-4) == right
