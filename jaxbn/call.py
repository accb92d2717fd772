"""The checked arguments of a training call; a policy decides which moments normalise.

Workers hold the batch: the devices along a mapped axis or, without an axis name, parts
of the array. The methods normalise by the moments of all workers, of groups of workers,
of each worker alone, or by other statistics. The policies in `jaxbn.sync_policies`
choose among these methods.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbn import call_site, grouping
from jaxbn.core import affine, local, normalize, reduction, running, sub_batches
from jaxbn.core.moments import Moments, count_per_channel


class Call(NamedTuple):
    """Checked arguments of `batch_norm_train`."""

    how: reduction.Reduction
    output: affine.Output
    x: jax.Array
    scale: jax.Array
    bias: jax.Array
    mask: jax.Array | None
    residual: jax.Array | None
    batch_stats: running.BatchStats  # The running statistics before this call.
    examples: int | None = None  # Per worker, if parts of the array are workers.

    @property
    def workers(self) -> int:
        """The number of workers: devices along the axis, or parts of the array."""
        if self.how.devices is not None:
            return self.how.devices.size
        return 1 if self.examples is None else self.x.shape[self.axis] // self.examples

    @property
    def axis(self) -> int:
        """The axis of the examples, which is the first axis of `x` that is reduced."""
        axes = reduction.reduction_axes(self.x.ndim, self.how.feature_axes)
        return axes[0]

    def normalized(self) -> tuple[jax.Array, Moments]:
        """Normalises as `how` and `examples` specify, as one op with a derivative rule.

        Returns:
          `y`, of the shape of `x`, and the moments: `[C]` each, or `[groups, C]` where
          there are groups of devices or parts of the array.
        """
        apart, position = _apart(self)
        _warn_of_single_values(apart.x, apart.how)
        y, moments = normalize.normalize(
            apart.how,
            apart.output,
            apart.x,
            apart.scale,
            apart.bias,
            apart.mask,
            apart.residual,
        )
        moments = jax.tree.map(lambda part: jnp.moveaxis(part, position, 0), moments)
        return y.reshape(self.x.shape), moments

    def by_all(self) -> tuple[jax.Array, Moments]:
        """Normalises by the moments of all workers: exact synchronisation.

        Returns:
          `y`, of the shape of `x`, and these moments, `[C]` each.
        """
        return self._replace(examples=None).normalized()

    def by_groups(self, size: int) -> tuple[jax.Array, Moments]:
        """Normalises by the moments of groups of `size` neighbouring workers.

        Returns:
          `y`, and the moments of every group, `[groups, C]` each, which all workers
          have. If each group is a single device: the moments of all devices together,
          `[1, C]`.

        Raises:
          ValueError: if there are no workers, or `size` does not divide them.
        """
        self._check_workers()
        if size < 1 or self.workers % size:
            raise ValueError(
                f"Groups must be of a size that divides the {self.workers} workers, "
                f"got {size}."
            )
        devices, examples = self.how.devices, self.examples
        if devices is None:
            made = self._replace(examples=examples and examples * size)
        else:
            devices = grouping.as_devices(devices.axis_name, None, size)
            made = self._replace(how=self.how._replace(devices=devices))
        y, moments = made.normalized()
        rows = moments.mean.ndim > self.scale.ndim
        return y, moments if rows else jax.tree.map(lambda part: part[None], moments)

    def by_statistics(self, mean: jax.Array, var: jax.Array) -> jax.Array:
        """Normalises by given statistics, `[C]`; no gradient flows through them."""
        mean, var = jax.lax.stop_gradient((mean, var))
        return _standardized(self, mean, var)

    def by(self, merge: Callable[[Moments], Moments]) -> jax.Array:
        """Normalises by moments that `merge` computes from each worker's own moments.

        The gradient flows through `merge` and through the moments that it receives.

        Args:
          merge: a function from moments of shape `[workers, C]` to moments of the same
            shape. If the workers are devices, the first axis has size 1.

        Raises:
          ValueError: if there are no workers, or if the layer works in place.
        """
        self._check_workers()
        if self.output.in_place:
            raise ValueError(
                "`in_place` is for moments of this step, got a policy that merges "
                "others with them; leave it out."
            )
        apart, position = _apart(self)
        mine = local.local_moments(
            apart.how._replace(devices=None), apart.x, apart.mask
        )
        mine = count_per_channel(mine)
        simulated = self.examples is not None

        def leading(part: jax.Array) -> jax.Array:
            return jnp.moveaxis(part, position, 0) if simulated else part[None]

        def back(part: jax.Array) -> jax.Array:
            return jnp.moveaxis(part, 0, position) if simulated else part[0]

        used = jax.tree.map(back, merge(jax.tree.map(leading, mine)))
        y = _standardized(apart, used.mean, used.var)
        return y.reshape(self.x.shape)

    def counting(self, fraction: float) -> "Call":
        """Returns a call whose moments use only the first examples of every worker.

        Args:
          fraction: the fraction of a worker's examples to use; the number is rounded
            up.
        """
        axis, size = self.axis, self.x.shape[self.axis]
        each = self.examples or size
        # With a symbolic size from `jax.export` this product is an array.
        known = isinstance(each, int)
        number = math.ceil(fraction * each) if known else jnp.ceil(fraction * each)
        counts = jnp.arange(size) % each < number
        mask = counts.reshape([-1 if a == axis else 1 for a in range(self.x.ndim)])
        return self._replace(mask=mask if self.mask is None else self.mask & mask)

    def holding(self, still: jax.Array) -> "Call":
        """Returns a call without a gradient to `x` in channels where `still`, `[C]`."""
        expand = affine.expander(self.how.feature_axes, self.x)
        x = jnp.where(expand(still), jax.lax.stop_gradient(self.x), self.x)
        return self._replace(x=x)

    def _check_workers(self) -> None:
        if self.how.devices is None and self.examples is None:
            raise ValueError(
                "`sync` tells workers apart, got neither an `axis_name` nor a "
                "`group_size`; give the mapped axis, or the examples of each worker."
            )


def _warn_of_single_values(x: jax.Array, how: reduction.Reduction) -> None:
    """Warns if the shapes leave one value per channel in the whole group."""
    axes = reduction.reduction_axes(x.ndim, how.feature_axes)
    count = math.prod(x.shape[a] for a in axes)
    if how.devices is not None:
        groups = how.devices.groups
        count *= len(groups[0]) if groups else how.devices.size
    if count == 1:
        # The message does not name the layer, so that a model warns once.
        call_site.warn(
            "`BatchNorm` got one value per channel, which has no variance: its output "
            "is the bias and its running statistics stay as they are. Drop the last "
            "batch, merge it with another, or use the running average; "
            "`jaxbn.diagnose` counts the values of each layer."
        )


def _standardized(call: Call, mean: jax.Array, var: jax.Array) -> jax.Array:
    x, mask = call.x, call.mask
    if mask is not None:  # 0 times NaN is NaN, also in derivatives.
        expand = affine.expander(call.how.feature_axes, x)
        x = jnp.where(mask | jnp.isfinite(x), x, expand(mean).astype(x.dtype))
    return normalize.standardize(
        call.output,
        call.how.feature_axes,
        x,
        call.scale,
        call.bias,
        mean,
        var,
        call.residual,
        mask,
    )


def _apart(call: Call) -> tuple[Call, int]:
    """Makes the parts of the array an additional channel axis.

    Returns:
      The call, and the position of the new axis among the channel axes. If the array
      has no parts, the call is unchanged.
    """
    if call.examples is None:
        return call, 0
    x, mask, feature_axes, position = sub_batches.split(
        call.x, call.mask, call.how.feature_axes, call.examples
    )
    how = call.how._replace(feature_axes=feature_axes)
    if how.variance == "auto":
        # One conditional for all groups would need a collective for its predicate.
        how = how._replace(variance="unconditional")
    scale, bias = (jnp.expand_dims(part, position) for part in call[3:5])
    residual = None if call.residual is None else call.residual.reshape(x.shape)
    made = call._replace(
        how=how, x=x, scale=scale, bias=bias, mask=mask, residual=residual
    )
    return made, position
