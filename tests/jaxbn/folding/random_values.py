"""Trees of variables with values that a trained model could have."""

import jax
import jax.numpy as jnp
import numpy as np


def like(tree, seed=0):
    """Returns a tree like `tree` with random parameters and positive variances."""
    rng = np.random.default_rng(seed)

    def value(keys, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        is_var = "var" in jax.tree_util.keystr(keys)
        made = (
            rng.uniform(0.5, 2, leaf.shape) if is_var else rng.normal(size=leaf.shape)
        )
        return jnp.asarray(made, leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, tree)
