import os
from importlib import metadata

# Compiling takes most of the time of the tests, and no test measures speed. XLA ends
# the process at a flag that it does not know, and newer versions lack the last one.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false"
        if metadata.version("jaxlib").startswith("0.10.")
        else "",
    ]
)

import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _same_random_numbers(request):
    """A test draws the same numbers alone, in any order and beside any other."""
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks as exhaustive all but the first case of tests that have `first_case`."""
    seen = set()
    for item in items:
        if item.get_closest_marker("exhaustive") or not item.get_closest_marker(
            "first_case"
        ):
            continue
        test = item.nodeid.partition("[")[0]
        if test in seen:
            item.add_marker(pytest.mark.exhaustive)
        seen.add(test)
