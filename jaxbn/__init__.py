"""jaxbn: Batch Normalization for JAX and Flax (Ioffe and Szegedy, 2015)."""

import importlib
from typing import Any

from jaxbn.core.moments import Moments as Moments
from jaxbn.core.moments import merge_moments as merge_moments
from jaxbn.core.normalize import (
    dots_and_moments_saveable as dots_and_moments_saveable,
)
from jaxbn.core.running import BatchStats as BatchStats
from jaxbn.core.running import init_batch_stats as init_batch_stats
from jaxbn.estimation import reset_batch_stats as reset_batch_stats
from jaxbn.functional import batch_norm_inference as batch_norm_inference
from jaxbn.functional import batch_norm_train as batch_norm_train
from jaxbn.moments_collection import init_batch_moments as init_batch_moments
from jaxbn.moments_collection import move_batch_stats as move_batch_stats
from jaxbn.replicas import in_sync as in_sync
from jaxbn.replicas import sync_batch_stats as sync_batch_stats
from jaxbn.statistics import batch_moments as batch_moments

__version__ = "0.1.0"
__all__ = [
    "BatchStats",
    "Moments",
    "batch_moments",
    "batch_norm_inference",
    "batch_norm_train",
    "dots_and_moments_saveable",
    "in_sync",
    "init_batch_moments",
    "init_batch_stats",
    "merge_moments",
    "move_batch_stats",
    "reset_batch_stats",
    "sync_batch_stats",
]

# Found as attributes without an import of their own, and imported only then, so that
# `import jaxbn` needs no Flax.
_MODULES = {
    "estimators": "jaxbn.core.estimators",
    "folding": "jaxbn.folding",
    "guide": "jaxbn.guide",
    "interop": "jaxbn.interop",
    "linen": "jaxbn.linen",
    "nnx": "jaxbn.nnx",
    "parallel": "jaxbn.parallel",
    "reproducibility": "jaxbn.reproducibility",
    "sync_policies": "jaxbn.sync_policies",
    "testing": "jaxbn.testing",
    "training": "jaxbn.training",
}


# Functions of Flax models, of modules that import it.
_FUNCTIONS = {
    "collecting": "jaxbn.nnx_passes",
    "diagnose": "jaxbn.diagnosis",
    "fold": "jaxbn.folding",
    "freeze": "jaxbn.freezing",
    "patch_flax": "jaxbn.patching",
    "recalibrate": "jaxbn.population",
    "replace": "jaxbn.replacement",
    "unfreeze": "jaxbn.freezing",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'jaxbn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_FUNCTIONS})
