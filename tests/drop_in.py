"""Shared parts of the tests that compare whole programs with Flax's layers."""

import functools

import chex
import jax
import numpy as np
import pytest

X = (1 + np.random.default_rng(0).standard_normal((8, 4, 3))).astype(np.float32)


def cases(programs, long_programs):
    """Returns each program with the stable and the fast variance; CI runs long ones."""
    return [
        pytest.param(
            program,
            fast,
            marks=[pytest.mark.exhaustive] if fast or program in long_programs else [],
            id=f"{program.__name__}-{'fast' if fast else 'stable'}",
        )
        for program in programs + long_programs
        for fast in (False, True)
    ]


def compare(program, fast, our_layer, flax_layer):
    """Runs a program with both layers."""
    ours, theirs = (
        program(functools.partial(layer, use_fast_variance=fast))
        for layer in (our_layer, flax_layer)
    )
    # E[x²] - E[x]² loses the digits that both terms share: about one for these inputs.
    assert_same(ours, theirs, tolerance=1e-3 if fast else 1e-4)


def assert_same(ours, theirs, tolerance=1e-4):
    """Checks that names, containers, shapes and dtypes agree, numbers to rounding."""
    chex.assert_trees_all_equal_structs(ours, theirs)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if not hasattr(a, "shape") or not hasattr(a, "dtype"):
            assert a == b, name
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if not isinstance(a, jax.ShapeDtypeStruct):
            # Sums of a few hundred terms in another order, through several layers; an
            # element may be small because larger terms cancel.
            atol = tolerance * max(1e-2, np.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=atol, err_msg=name)
