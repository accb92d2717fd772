"""One call of Batch Normalization, from its options to its moments.

`checked` checks the options and the arrays once, which gives a `Call`. It has a method
for each choice of the statistics that normalise: those of all workers, those of groups
of workers, given ones, or ones that are computed from them. A policy of `jaxbn.sync` or
a variant of `jaxbn.variants` chooses among the methods.

Workers are the devices along a mapped axis or, without an axis name, parts of the batch
with `group_size` examples each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbn._core import (
    affine,
    arguments,
    collectives,
    groups,
    normalize,
    reduction,
    running,
    user_warnings,
    variance,
)
from jaxbn._core.moments import Moments, count_per_channel
from jaxbn._core.product import Product

PER_WORKER = ("own", "sent")
"""The entries of a policy's state that have a row for each worker, `[workers, C]`."""


class Options(NamedTuple):
    """The options of a call, as a user gives them; see `jaxbn.batch_norm_train`."""

    axis: int | Sequence[int] = -1
    epsilon: float = 1e-5
    axis_name: reduction.AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    group_size: groups.GroupSize | None = None
    activation: str | None = None
    in_place: bool = False
    dtype: jax.typing.DTypeLike | None = None
    variance: reduction.Variance = "auto"
    force_float32_reductions: bool = True  # False: moments in the dtype of x.
    sync: Any = None  # A policy, or None.
    variant: Any = None  # A variant, or None.
    initializing: bool = False  # True: a layer initialises, without warnings.


class Normalized(NamedTuple):
    """The result of a call.

    Attributes:
      y: the output, of the shape of `x`.
      moments: `[C]` each, or `[groups, C]`; they update the running statistics.
      state: the new state of the policy or variant; empty if it has none.

    Example:
      >>> class Exact:  # A policy that shares statistics in every step.
      ...     def init(self, shape, dtype):
      ...         return {}
      ...     def normalize(self, call, state):
      ...         return Normalized(*call.by_all())
    """

    y: jax.Array
    moments: Moments
    state: Mapping[str, Any] = {}


class Call(NamedTuple):
    """The checked arguments of a call, and the ways to normalise it.

    A policy or a variant may replace arguments with `call._replace`, such as the mask.

    Attributes:
      settings: the channel axes, the form of the variance, and the devices along
        `axis_name`.
      output: epsilon, activation and dtype of the output.
      x: `[N, ..., C]`.
      scale: `[C]`.
      bias: `[C]`.
      mask: boolean, of the rank of `x` and broadcastable to it, or None.
      residual: an array of the shape of `x`, or None.
      running_mean: `[C]`, the running statistics before this call.
      running_var: `[C]`.
      examples: the examples of each worker if parts of the batch are workers, or None.
      warns: True if one value per channel causes a warning.
      factors: the factors of `x`, which the backward pass keeps instead of `x`, or
        None. With a policy it is None; a variant that replaces `x` sets it to None.

    Example:
      >>> class Pairs:  # A policy by which two workers share statistics.
      ...     def init(self, shape, dtype):
      ...         return {}
      ...     def normalize(self, call, state):
      ...         return Normalized(*call.by_groups(2))
    """

    settings: reduction.Settings
    output: affine.Output
    x: jax.Array
    scale: jax.Array
    bias: jax.Array
    mask: jax.Array | None
    residual: jax.Array | None
    running_mean: jax.Array
    running_var: jax.Array
    examples: int | None = None
    warns: bool = True
    factors: Product | None = None

    @property
    def workers(self) -> int:
        """The number of workers; 1 without an axis name and without parts."""
        if self.settings.devices is not None:
            return self.settings.devices.size
        return 1 if self.examples is None else self.x.shape[self.axis] // self.examples

    @property
    def axis(self) -> int:
        """The axis of the examples, which is the first axis that is no channel axis."""
        return reduction.reduction_axes(self.x.ndim, self.settings.feature_axes)[0]

    def by_all(self) -> tuple[jax.Array, Moments]:
        """Normalises by the moments of all workers, which is exact synchronisation.

        Returns:
          `y`, of the shape of `x`, and these moments, `[C]` each.
        """
        return self._replace(examples=None).by_options()

    def by_groups(self, size: int) -> tuple[jax.Array, Moments]:
        """Normalises by the moments of groups of `size` neighbouring workers.

        Returns:
          `y`, and the moments of every group, `[groups, C]` each, for the running
          statistics. If every group is a single device, they are the moments of all
          devices together, `[1, C]`.

        Raises:
          ValueError: if there are no workers, or `size` does not divide them.
        """
        self._check_workers()
        if size < 1 or self.workers % size:
            raise ValueError(
                f"Groups must be of a size that divides the {self.workers} workers, "
                f"got {size}."
            )
        devices, examples = self.settings.devices, self.examples
        if devices is None:
            call = self._replace(examples=examples and examples * size)
        else:
            devices = groups.as_devices(devices.axis_name, None, size)
            call = self._replace(settings=self.settings._replace(devices=devices))
        y, moments = call.by_options()
        if moments.mean.ndim == self.scale.ndim:
            moments = jax.tree.map(lambda part: part[None], moments)
        return y, moments

    def by_statistics(self, mean: jax.Array, var: jax.Array) -> jax.Array:
        """Returns `y` by given statistics, `[C]`; the gradient flows through them."""
        return _standardized(self, mean, var)

    def moments(self) -> Moments:
        """Returns the moments of all workers, `[C]`; the gradient flows through."""
        mine = collectives.sync_moments(self.settings, self.x, self.mask).mine
        return count_per_channel(mine)

    def over(self, axis_name: reduction.AxisName | None) -> "Call":
        """Returns a call whose workers are the devices along an axis.

        Raises:
          ValueError: if the axis is not bound, or `x` is not split over it.
        """
        devices = groups.as_devices(axis_name, None, None)
        groups.check_split(self.x, devices)
        settings = self.settings._replace(devices=devices)
        return self._replace(settings=settings, examples=None)

    def by(self, merge: Callable[[Moments], tuple[Moments, Any]]) -> tuple[Any, Any]:
        """Normalises by moments that `merge` computes from each worker's own moments.

        The gradient flows through `merge` and through the moments that it receives.

        Args:
          merge: a function that receives each worker's own moments, `[workers, C]`
            each. It returns the moments that normalise, of the same shape, and any
            tree. With an axis name the first axis has size 1, because a device is one
            worker.

        Returns:
          `y`, and that tree.

        Raises:
          ValueError: if there are no workers, or if the layer works in place.
        """
        self._check_workers()
        if self.output.in_place:
            raise ValueError(
                "`in_place` is for moments of this step, got a policy that merges "
                "moments of other steps with them; leave it out."
            )
        call, position = _with_group_axis(self)
        own = variance.local_moments(
            call.settings._replace(devices=None), call.x, call.mask
        )
        own = count_per_channel(own)
        has_parts = self.examples is not None

        def workers_first(part: jax.Array) -> jax.Array:
            return jnp.moveaxis(part, position, 0) if has_parts else part[None]

        def as_channels(part: jax.Array) -> jax.Array:
            return jnp.moveaxis(part, 0, position) if has_parts else part[0]

        used, other = merge(jax.tree.map(workers_first, own))
        used = jax.tree.map(as_channels, used)
        y = _standardized(call, used.mean, used.var)
        return y.reshape(self.x.shape), other

    def without_gradient_in(self, channels: jax.Array) -> "Call":
        """Returns a call that stops the gradient to `x` where `channels` is True.

        Args:
          channels: boolean, `[C]`.
        """
        expand = affine.expander(self.settings.feature_axes, self.x)
        x = jnp.where(expand(channels), jax.lax.stop_gradient(self.x), self.x)
        return self._replace(x=x)

    def check_no_groups(self, name: str) -> None:
        """Checks that the statistics are those of the whole batch, on all devices.

        Args:
          name: the variant that needs this, for the message.

        Raises:
          ValueError: if groups of devices or of examples are normalised apart.
        """
        devices = self.settings.devices
        if self.examples is not None or (devices is not None and devices.groups):
            raise ValueError(
                f"`{name}` needs the statistics of the whole batch, got "
                "`group_size` or `axis_index_groups`; leave them out."
            )

    def no_moments(self) -> Moments:
        """Returns moments of count 0, `[C]`, which change no running statistics."""
        dtype = self.settings.dtype or reduction.reduction_dtype(self.x.dtype)
        mean = jnp.zeros([self.x.shape[a] for a in self.settings.feature_axes], dtype)
        real = jnp.zeros_like(mean, reduction.real_dtype(dtype))
        return Moments(real, mean, real, mean)

    def by_options(
        self, correct: affine.Correct | None = None, context: Any = None
    ) -> tuple[jax.Array, Moments]:
        """Normalises by the groups of the options, or by the whole batch.

        Args:
          correct: a function of the moments and of `context`. It returns two constants
            of each channel, `gain` and `shift`, and then scale and bias are applied to
            `gain * x_hat + shift`. No gradient flows through it. Calls with the same
            function share a trace, so define it at the top of a module.
          context: arrays of shape `[C]` or `[]`.

        Returns:
          `y`, of the shape of `x`, and the moments: `[C]` each, or `[groups, C]` where
          there are groups of devices or parts of the batch.
        """
        call, position = _with_group_axis(self)
        if self.examples is not None:  # Every part has the same context.
            context = jax.tree.map(
                lambda part: jnp.expand_dims(part, position) if part.ndim else part,
                context,
            )
        if self.warns:
            _warn_of_single_values(call.x, call.settings)
        y, moments = normalize.normalize(
            call.settings,
            call.output._replace(correct=correct),
            _x_or_factors(call),
            call.scale,
            call.bias,
            call.mask,
            call.residual,
            context,
        )
        moments = jax.tree.map(lambda part: jnp.moveaxis(part, position, 0), moments)
        return y.reshape(self.x.shape), moments

    def _check_workers(self) -> None:
        if self.settings.devices is None and self.examples is None:
            raise ValueError(
                "`sync` needs several workers, got neither an `axis_name` nor a "
                "`group_size`; give the mapped axis, or the examples of each worker."
            )


def checked(
    options: Options,
    x: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None,
    bias: jax.typing.ArrayLike | None,
    batch_stats: running.BatchStats,
    mask: jax.typing.ArrayLike | None,
    residual: jax.typing.ArrayLike | None,
    factors: arguments.Factors | None = None,
) -> Call:
    """Returns the checked arguments of a call, for functions and layers alike.

    Args:
      options: the options of the call.
      x: `[N, ..., C]`.
      scale: `[C]` or None.
      bias: `[C]` or None.
      batch_stats: the running statistics.
      mask: broadcastable to `x`, or None.
      residual: an array of the shape of `x`, or None.
      factors: `(inputs, kernel)`, whose product is `x`, or None.

    Raises:
      ValueError, TypeError: as in `jaxbn.batch_norm_train`.
    """
    arrays = arguments.as_arrays(
        x, scale, bias, batch_stats.mean, batch_stats.var, options.axis
    )
    x, feature_axes = arrays.x, arrays.feature_axes
    arguments.check_variance(options.variance)
    devices = groups.as_devices(
        options.axis_name, options.axis_index_groups, options.group_size
    )
    groups.check_split(x, devices)
    examples = None
    if devices is None and options.group_size is not None:
        examples = groups.examples_per_group(x, feature_axes, options.group_size)
    settings = reduction.Settings(
        feature_axes,
        variance=options.variance,
        dtype=None if options.force_float32_reductions else x.dtype,
        devices=devices,
    )
    output = arguments.as_output(
        x,
        epsilon=options.epsilon,
        dtype=options.dtype,
        activation=options.activation,
        in_place=options.in_place,
    )
    product = arguments.as_product(factors, x, feature_axes, options.in_place)
    return Call(
        settings,
        output,
        x,
        arrays.scale,
        arrays.bias,
        arguments.as_mask(mask, x.shape),
        arguments.as_residual(residual, x),
        *jax.lax.stop_gradient((batch_stats.mean, batch_stats.var)),
        examples,
        warns=not options.initializing,
        # A policy may replace `x`, and then they would not be its factors.
        factors=product if options.sync is None else None,
    )


def normalized(
    options: Options, call: Call, batch_stats: running.BatchStats
) -> tuple[jax.Array, Moments, running.BatchStats]:
    """Normalises a batch in training by its options, its policy or its variant.

    Args:
      options: the options of the call.
      call: the result of `checked` for them.
      batch_stats: the running statistics, with the state of the policy or variant.

    Returns:
      `y`, the moments that update the running statistics, and `batch_stats` with the
      new state. Its arrays have the dtypes of the old ones.

    Raises:
      ValueError, TypeError: as in `jaxbn.batch_norm_train`.
    """
    arguments.check_sync_and_variant(options.sync, options.variant)
    chosen = options.variant if options.sync is None else options.sync
    if chosen is None:
        return *call.by_options(), batch_stats
    if options.sync is not None:
        _check_sync(call)
    state = running.state_of(batch_stats)
    by_example = options.sync is not None and call.examples is not None
    _check_state(chosen, call, state, rows=call.workers if by_example else 1)
    y, moments, new = chosen.normalize(call, state)
    new = jax.tree.map(lambda part, old: part.astype(old.dtype), new, state)
    return y, moments, running.with_state(batch_stats, new)


def _check_sync(call: Call) -> None:
    if call.settings.devices is not None and call.settings.devices.groups is not None:
        raise ValueError(
            "`sync` decides which devices share statistics, got `axis_index_groups` or "
            "`group_size` as well; leave them out."
        )


def _check_state(chosen: Any, call: Call, state: Mapping[str, Any], rows: int) -> None:
    """Checks that a state is that of a policy or variant, with a row per worker."""
    shape = tuple(call.x.shape[a] for a in call.settings.feature_axes)
    expected = jax.eval_shape(lambda: chosen.init(shape, jnp.dtype(jnp.float32)))
    shapes, needed = (
        {
            name: jax.tree.map(np.shape, part)
            for name, part in each.items()
            if name not in PER_WORKER
        }
        for each in (state, expected)
    )
    same = jax.tree.structure(state) == jax.tree.structure(expected)
    if not same or shapes != needed:
        raise ValueError(
            f"The state of {chosen!r} must be one that its `init` returns, of shapes "
            f"{needed}, got {shapes}; make the statistics with "
            "`init_batch_stats(shape, sync=...)` or `variant=...`, or let Flax create "
            "the variables, such as those of the collection `batch_sync`."
        )
    for name in PER_WORKER:
        for leaf in jax.tree.leaves(state.get(name)):
            if leaf.shape[0] != rows:
                raise ValueError(
                    f"The state of {chosen!r} must have a row for each of the {rows} "
                    f"workers here, got {leaf.shape[0]}; make it with "
                    "`jaxbn.sync.for_workers`, and split it over the devices with "
                    "`jaxbn.sync.partition_specs`."
                )


def _warn_of_single_values(x: jax.Array, settings: reduction.Settings) -> None:
    """Warns if the shapes leave one value per channel in the whole group."""
    axes = reduction.reduction_axes(x.ndim, settings.feature_axes)
    count = math.prod(x.shape[a] for a in axes)
    if settings.devices is not None:
        members = settings.devices.groups
        count *= len(members[0]) if members else settings.devices.size
    if count == 1:
        user_warnings.single_value()


def _standardized(call: Call, mean: jax.Array, var: jax.Array) -> jax.Array:
    return normalize.standardize(
        call.output,
        call.settings.feature_axes,
        call.x,
        call.scale,
        call.bias,
        mean,
        var,
        call.residual,
        call.mask,
    )


def _x_or_factors(call: Call) -> jax.Array | Product:
    """Returns the factors of `x` if they suffice for the derivative, otherwise `x`.

    They do not if the mask differs between channels. On a mesh of Explicit axes, JAX
    rejects sums of products over examples that lie on several devices.
    """
    masked = call.mask is not None and call.mask.shape[-1] != 1
    split = any(jax.typeof(call.x).sharding.spec)
    return call.x if call.factors is None or masked or split else call.factors


def _with_group_axis(call: Call) -> tuple[Call, int]:
    """Makes the parts of the batch another channel axis, so that each has statistics.

    Returns:
      The call, and the position of the new axis among the channel axes. If the batch
      has no parts, the call is unchanged.
    """
    if call.examples is None:
        return call, 0
    x, mask, feature_axes, position = groups.split_into_groups(
        call.x, call.mask, call.settings.feature_axes, call.examples
    )
    settings = call.settings._replace(feature_axes=feature_axes)
    if settings.variance == "auto":
        # The predicate of one conditional for all groups would need a collective.
        settings = settings._replace(variance="unconditional")
    residual = None if call.residual is None else call.residual.reshape(x.shape)
    split = call._replace(
        settings=settings,
        x=x,
        factors=None,
        scale=jnp.expand_dims(call.scale, position),
        bias=jnp.expand_dims(call.bias, position),
        mask=mask,
        residual=residual,
    )
    return split, position
