"""One call of Batch Normalization in training: everything but whose moments are used.

A batch is held by workers: the devices along a mapped axis or, without an axis name,
parts of the array. The methods normalise by the moments of all workers, of groups of
them, of each alone, or by others; policies in `jaxbn.sync_policies` choose.
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
    batch_stats: running.BatchStats  # The running statistics of before.
    examples: int | None = None  # Per worker, where parts of the array are workers.

    @property
    def workers(self) -> int:
        """How many there are: devices along the axis, or parts of the array."""
        if self.how.devices is not None:
            return self.how.devices.size
        return 1 if self.examples is None else self.x.shape[self.axis] // self.examples

    @property
    def axis(self) -> int:
        """The first axis of `x` that is reduced: that of the examples."""
        axes = reduction.reduction_axes(self.x.ndim, self.how.feature_axes)
        return axes[0]

    def normalized(self) -> tuple[jax.Array, Moments]:
        """Normalised as `how` and `examples` say, by one op with its own derivative.

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
        """Normalised by the moments of all workers: exact synchronisation.

        Returns:
          `y`, of the shape of `x`, and these moments, `[C]` each.
        """
        return self._replace(examples=None).normalized()

    def by_groups(self, size: int) -> tuple[jax.Array, Moments]:
        """Normalised by the moments of groups of so many neighbouring workers.

        Returns:
          `y`, and the moments of every group, `[groups, C]` each, known to all workers;
          or `[1, C]` of all together, where each group is a single device.

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
        """Normalised by given statistics, `[C]`; no gradient goes through them."""
        mean, var = jax.lax.stop_gradient((mean, var))
        return _standardized(self, mean, var)

    def by(self, merge: Callable[[Moments], Moments]) -> jax.Array:
        """Normalised by whatever a function makes of each worker's own moments.

        The gradient flows through the function and the moments that it is given.

        Args:
          merge: from moments `[workers here, C]`, which a device has one of, to others
            of the same shape.

        Raises:
          ValueError: if there are no workers, or for layers that work in place.
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
        """The same, with the first examples of every worker in the moments alone.

        Args:
          fraction: of its examples, rounded up.
        """
        axis, size = self.axis, self.x.shape[self.axis]
        each = self.examples or size
        # A size that `jax.export` does not know is an array here.
        known = isinstance(each, int)
        number = math.ceil(fraction * each) if known else jnp.ceil(fraction * each)
        counts = jnp.arange(size) % each < number
        mask = counts.reshape([-1 if a == axis else 1 for a in range(self.x.ndim)])
        return self._replace(mask=mask if self.mask is None else self.mask & mask)

    def holding(self, still: jax.Array) -> "Call":
        """The same, with no gradient to `x` in the channels where `still`, `[C]`."""
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
    """Warns where the shapes leave one value per channel in the whole group."""
    axes = reduction.reduction_axes(x.ndim, how.feature_axes)
    count = math.prod(x.shape[a] for a in axes)
    if how.devices is not None:
        groups = how.devices.groups
        count *= len(groups[0]) if groups else how.devices.size
    if count == 1:
        # Without the name of the layer, so that a model warns once.
        call_site.warn(
            "`BatchNorm` got one value per channel, which has no variance: its output "
            "is the bias and its running statistics stay as they are. Drop the last "
            "batch, merge it with another, or use the running average; "
            "`jaxbn.diagnose` counts the values of each layer."
        )


def _standardized(call: Call, mean: jax.Array, var: jax.Array) -> jax.Array:
    x, mask = call.x, call.mask
    if mask is not None:  # What is not finite would reach derivatives by a factor of 0.
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
    """The parts of the array as one more axis of channels, and its place among them."""
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
