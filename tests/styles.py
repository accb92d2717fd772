"""jaxbn's training step in every parallel style, compiled once per set of options."""

import functools

import pytest

import jaxbn
from experiments.framework import styles
from experiments.framework.styles import AUTO, EXPLICIT, JIT, MAPPED
from jaxbn import linen
from jaxbn._core import collectives

__all__ = ["ALL", "AUTO", "DEVICES", "EXPLICIT", "JIT", "MAPPED", "every", "run"]

DEVICES = 8
ALL = tuple(styles.ALL)
# One of each kind; the others are tried with `-m exhaustive`.
QUICK = ("single device", "vmap", "shard_map", "jit Auto")


def every(names=ALL, quick=QUICK):
    """Parameters for a test of these styles; all but the quick ones are exhaustive."""
    return [
        name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in names
    ]


def run(style, x, mask, dy, scale, bias, stats, *, layer=False, **options):
    """A step of the functional form, or of the Linen layer."""
    how = (style, layer, repr(sorted(options.items())), collectives.MAX_ROWS)
    if how not in _COMPILED:
        normalize = functools.partial(_layer if layer else _function, **options)
        _COMPILED[how] = styles.ALL[style](normalize, DEVICES)
    return _COMPILED[how](x, mask, dy, scale, bias, stats)


_COMPILED = {}


def _function(x, mask, scale, bias, stats, **options):
    return jaxbn.batch_norm_train(x, scale, bias, stats, mask=mask, **options)


def _layer(x, mask, scale, bias, stats, **options):
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": stats.mean, "var": stats.var, **stats.extra},
    }
    module = linen.BatchNorm(use_running_average=False, **options)
    y, new = module.apply(variables, x, mask=mask, mutable=["batch_stats"])
    extra = dict(new["batch_stats"])
    return y, jaxbn.BatchStats(extra.pop("mean"), extra.pop("var"), extra)
