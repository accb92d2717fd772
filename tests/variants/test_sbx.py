"""Batch Renormalization of sbx (CrossQ), side by side with `Renorm`.

sbx adds epsilon to `var / r^2`, and the paper adds it to `var`. So the results are
equal in the warm-up, and where epsilon is small against the variance.
"""

import importlib.util
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn import variants
from jaxbn.linen import BatchNorm

FOUND = importlib.util.find_spec("sbx")
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(FOUND is None, reason="sbx-rl is not installed"),
]
RNG = np.random.default_rng(0)


def their_layer(**options):
    """Sbx's layer; its package is not imported, because that needs an environment."""
    folder = pathlib.Path(FOUND.submodule_search_locations[0])
    path = folder / "common/jax_layers.py"
    spec = importlib.util.spec_from_file_location("sbx_jax_layers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BatchRenorm(use_running_average=False, **options)


@pytest.mark.parametrize(
    ("warmup", "epsilon"), [(100_000, 1e-3), (0, 1e-12), (3, 1e-12)]
)
def test_both_layers_give_the_same(warmup, epsilon):
    theirs = their_layer(warmup_steps=warmup, epsilon=epsilon)
    ours = BatchNorm(
        use_running_average=False,
        epsilon=epsilon,
        unbiased=False,
        variant=variants.Renorm(warmup_steps=warmup),
    )
    x = jnp.asarray(RNG.standard_normal((32, 5)), jnp.float32)
    mine, other = (layer.init(jax.random.key(0), x) for layer in (ours, theirs))
    dy = jnp.asarray(RNG.standard_normal(x.shape), jnp.float32)
    for index in range(6):
        batch = 3 * index + (1 + index) * x

        def step(layer, variables, batch=batch):
            def apply(params, x):
                given = {**variables, "params": params}
                return layer.apply(given, x, mutable=["batch_stats"])

            y, pull, new = jax.vjp(apply, variables["params"], batch, has_aux=True)
            return (y, *pull(dy)), {**variables, **new}

        results, mine = step(ours, mine)
        right, other = step(theirs, other)
        chex.assert_trees_all_close(results, right, rtol=2e-4, atol=2e-4)
        for name in ("mean", "var", "steps"):
            state = mine["batch_stats"][name], other["batch_stats"][name]
            chex.assert_trees_all_close(*state, rtol=1e-5, atol=1e-5)
