"""jaxbn: Batch Normalization for JAX and Flax (Ioffe and Szegedy, 2015)."""

import importlib
from typing import Any

from jaxbn._core.moments import Moments as Moments
from jaxbn._core.moments import merge_moments as merge_moments
from jaxbn._core.normalize import remat_policy as remat_policy
from jaxbn._layers.accumulation import begin_accumulation as begin_accumulation
from jaxbn._layers.accumulation import end_accumulation as end_accumulation
from jaxbn.estimators import BatchStats as BatchStats
from jaxbn.estimators import init_batch_stats as init_batch_stats
from jaxbn.functional import batch_moments as batch_moments
from jaxbn.functional import batch_norm_inference as batch_norm_inference
from jaxbn.functional import batch_norm_train as batch_norm_train

__version__ = "0.1.0"
__all__ = [
    "BatchStats",
    "Moments",
    "accumulate",
    "batch_moments",
    "batch_norm_inference",
    "batch_norm_train",
    "begin_accumulation",
    "convert",
    "diagnose",
    "end_accumulation",
    "estimators",
    "fold",
    "freeze",
    "in_sync",
    "init_batch_stats",
    "linen",
    "merge_moments",
    "nnx",
    "parallel",
    "patch_flax",
    "recalibrate",
    "remat_policy",
    "replace",
    "reset_batch_stats",
    "sync",
    "sync_batch_stats",
    "testing",
    "training",
    "unfreeze",
    "variants",
]

# These are imported when they are used, so that `import jaxbn` needs no Flax.
_MODULES = (
    "convert",
    "linen",
    "nnx",
    "parallel",
    "sync",
    "testing",
    "training",
    "variants",
)
_FUNCTIONS = {
    "accumulate": "jaxbn.models",
    "diagnose": "jaxbn.models",
    "fold": "jaxbn.models",
    "freeze": "jaxbn.models",
    "in_sync": "jaxbn.parallel",
    "patch_flax": "jaxbn.models",
    "recalibrate": "jaxbn.models",
    "replace": "jaxbn.models",
    "reset_batch_stats": "jaxbn.models",
    "sync_batch_stats": "jaxbn.parallel",
    "unfreeze": "jaxbn.models",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxbn.{name}")
    raise AttributeError(f"module 'jaxbn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
