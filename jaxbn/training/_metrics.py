"""Metrics of a batch, kept as totals so that batches and devices add up exactly."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Metric(NamedTuple):
    """A mean, kept as total and count so that `a + b` is the mean of both together.

    `sum` and `float` work as well. Steps return metrics with `total` in float32 and
    `count` in int32, both scalars.

    Attributes:
      total: the sum of the values.
      count: the number of values.

    Example:
      >>> float(Metric(jnp.array(3.0), jnp.array(2)) + Metric(jnp.array(1.0), 2))
      1.0
    """

    total: jax.Array  # shape=(), dtype=float32
    count: jax.Array  # shape=(), dtype=int32

    @property
    def mean(self) -> jax.Array:
        """The mean, `total / count`; 0 without examples."""
        return self.total / jnp.maximum(self.count, 1).astype(self.total.dtype)

    def __add__(self, other: Any) -> "Metric":
        """Returns the metric of both together; 0 is neutral, so that `sum` works."""
        if isinstance(other, Metric):
            return Metric(self.total + other.total, self.count + other.count)
        return self if isinstance(other, int) and other == 0 else NotImplemented

    __radd__ = __add__

    def __float__(self) -> float:
        """Returns the mean as a Python number."""
        return float(self.mean)


Metrics = dict[str, Metric]
"""The metrics of a batch, by the names that the loss function gave its values."""


def reduce(values: Mapping[str, jax.Array], mask: jax.Array | None) -> Metrics:
    """Returns total and count of the valid values that a `loss_fn` returned.

    Args:
      values: arrays with one value per example; one of them is named "loss".
      mask: boolean, of their shape, True where an example counts. With None all count.

    Raises:
      TypeError: if `values` is not a mapping.
      ValueError: if it has no "loss", or if a shape is not that of the mask.
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            "`loss_fn` must return a mapping of names to values per example, got "
            f"{type(values).__name__}."
        )
    if "loss" not in values:
        raise ValueError(
            f"`loss_fn` must return a mapping with 'loss', got {sorted(values)}."
        )
    metrics = {}
    for name, value in values.items():
        value = jnp.asarray(value)
        if value.ndim == 0 or (mask is not None and value.shape != mask.shape):
            shape = "(examples, ...)" if mask is None else f"{mask.shape}, as the mask"
            raise ValueError(
                f"`loss_fn` must return one value per example, of shape {shape}; got "
                f"{value.shape} for {name!r}. Leave out the mean."
            )
        valid = jnp.ones(value.shape, bool) if mask is None else mask.astype(bool)
        # A product with the mask would keep a NaN of a padded example.
        total = jnp.sum(
            jnp.where(valid, value, jnp.zeros((), value.dtype)), dtype=jnp.float32
        )
        # Without a mask the count is known, so no backward pass waits for its sum. In
        # `jax.export` it may be a symbol, which NumPy cannot convert.
        known = mask is None and isinstance(value.size, int)
        count: Any = np.int32(value.size) if known else jnp.sum(valid, dtype=jnp.int32)
        metrics[name] = Metric(total, count)
    return metrics


def over_steps(metrics: Metrics) -> Metrics:
    """Adds up the metrics of several steps, along the first axis."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, 0, dtype=leaf.dtype), metrics)
