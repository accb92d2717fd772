"""`BatchNorm` for Flax NNX: change the import, keep model and checkpoints.

The parameters `scale` and `bias` and the state `mean` and `var` have the names, kinds
of variable, shapes and dtypes of `flax.nnx.BatchNorm`.

  >>> layer = BatchNorm(3, rngs=nnx.Rngs(0))
  >>> x = jax.random.normal(jax.random.key(0), (8, 3))
  >>> y = layer(x)  # Moves layer.mean and layer.var.
  >>> layer.eval()
  >>> bool(jnp.all(layer(x) == layer(x)))
  True
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.nn import initializers

from jaxbn._core import arguments, groups, reduction, running
from jaxbn._core.call import PER_WORKER
from jaxbn._layers import accumulation, call, conv_batch_norm, switches
from jaxbn.estimators import BatchStats, EstimatorOrName

__all__ = ["BatchNorm", "BatchSync", "ConvBatchNorm", "OwnBatchSync"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class BatchSync(nnx.Variable):
    """The part of a policy's state that is the same for all workers.

    Example:
      >>> from jaxbn.sync import FrozenAfter
      >>> layer = BatchNorm(2, sync=FrozenAfter(100), rngs=nnx.Rngs(0))
      >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer, BatchSync)))
      {'batch_sync': {'step': ()}}
    """


class OwnBatchSync(nnx.Variable):
    """The part of a policy's state that differs between workers, `[workers, C]`.

    Example:
      >>> from jaxbn.sync import Stale
      >>> layer = BatchNorm(2, sync=Stale(), rngs=nnx.Rngs(0))
      >>> bool(nnx.to_pure_dict(nnx.state(layer, OwnBatchSync)))
      True
    """


class Accumulated(nnx.Variable):
    """The moments of several passes; see `jaxbn.accumulate`."""


class BatchNorm(nnx.BatchNorm):
    """Batch Normalization, a replacement for `flax.nnx.BatchNorm`.

    The layer is a subclass of Flax's, with all its arguments and attributes and the
    same meaning. Two defaults differ: the running variance is unbiased, and the
    variance is computed in a stable form. The running statistics are used in float32;
    Flax rounds them to `dtype`. The first complex batch makes the mean complex; Flax
    drops the imaginary part. `jaxbn.linen.BatchNorm` describes the options that Flax
    does not have.

    Args:
      num_features: the size of the channel axis, or the sizes of several.
      use_running_average: normalise by the running statistics (inference) instead of
        those of the batch (training). `train()`, `eval()` and `nnx.view` set it.
      axis: channel axis or axes of the input; all others are reduced.
      momentum: weight of the OLD running statistics, in [0, 1].
      epsilon: a number >= 0 that is added to the variance.
      dtype: the dtype of the result. Default: the dtype to which input, parameters and
        statistics promote.
      param_dtype: the dtype of scale and bias.
      use_bias: add a bias.
      use_scale: multiply by a scale.
      bias_init, scale_init: initialisers of bias and scale.
      axis_name: axis, or tuple of axes, bound by pmap, shard_map or vmap, over which
        the batch is split. Leave it out under plain jit.
      axis_index_groups: groups of indices along `axis_name` that share statistics.
      use_fast_variance: compute `E[x^2] - E[x]^2`, as in `jaxbn.linen.BatchNorm`.
      promote_dtype: a function that decides the dtype of the result. It receives the
        arrays (x, mean, var, scale, bias) and `dtype`. The result has the dtype of the
        first array that it returns.
      rngs: random keys for scale and bias; not needed without them.
      bias_metadata, scale_metadata: metadata of the variables of bias and scale.

    Raises:
      ValueError: if `rngs` is missing where there are parameters.

    Example:
      >>> layer = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.arange(8.0)[:, None])
      >>> layer.mean[...]
      Array([0.35], dtype=float32)

    References:
      Ioffe and Szegedy, arXiv:1502.03167.
    """

    force_float32_reductions = True  # An option of `jaxbn.linen.BatchNorm` only.

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: int | Sequence[int] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: initializers.Initializer = initializers.zeros,
        scale_init: initializers.Initializer = initializers.ones,
        axis_name: reduction.AxisName | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = False,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        rngs: nnx.Rngs | None = None,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
        group_size: groups.GroupSize | None = None,
        unbiased: bool = True,
        activation: str | None = None,
        in_place: bool = False,
        variance: reduction.Variance = "auto",
        update_running_average: bool | None = None,
        estimator: EstimatorOrName = "ema",
        sync: Any = None,
        variant: Any = None,
    ):
        self.num_features = num_features
        self.use_running_average = use_running_average
        # A module holds tuples as static attributes, so sequences become tuples.
        self.axis = axis if isinstance(axis, int) else tuple(axis)
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = tuple(axis_name) if isinstance(axis_name, list) else axis_name
        if axis_index_groups is not None:
            axis_index_groups = tuple(map(tuple, axis_index_groups))
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.group_size = group_size
        self.unbiased = unbiased
        self.activation = activation
        self.in_place = in_place
        self.variance = variance
        self.update_running_average = update_running_average
        self.frozen = switches.Frozen()  # Set by `jaxbn.freeze`.
        self.estimator = estimator
        self.sync = sync
        self.variant = variant

        shape = call.as_channels(num_features)
        stats = call.init_batch_stats(self, shape, jnp.dtype(param_dtype))
        self.mean, self.var = nnx.BatchStat(stats.mean), nnx.BatchStat(stats.var)
        for name, value in {**stats.extra, **stats.variant}.items():
            setattr(self, name, nnx.BatchStat(value))
        if stats.sync:
            shared, own = _shared_and_own(stats.sync)
            self.batch_sync, self.own_batch_sync = BatchSync(shared), OwnBatchSync(own)

        def param(name: str, init: Callable[..., jax.Array], metadata) -> nnx.Param:
            if rngs is None:
                raise ValueError(f"`rngs` must be given for the {name}, got None.")
            return nnx.Param(init(rngs.params(), shape, param_dtype), **metadata)

        absent = nnx.data(None)
        # The scale takes the first key, as in Flax.
        self.scale = param("scale", scale_init, scale_metadata) if use_scale else absent
        self.bias = param("bias", bias_init, bias_metadata) if use_bias else absent

    def __call__(
        self,
        x: jax.typing.ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: jax.typing.ArrayLike | None = None,
        residual: jax.typing.ArrayLike | None = None,
        update_running_average: bool | None = None,
        factors: arguments.Factors | None = None,
    ) -> jax.Array:
        """Normalises `x`, and updates the running statistics if that is switched on.

        Args:
          x: `[N, ..., C]`.
          use_running_average: overrides the attribute.
          mask: broadcastable to `x`, True where an element counts for the statistics.
          residual: an array of the shape of `x` that is added before the activation.
          update_running_average: overrides the attribute.
          factors: `(inputs, kernel)` whose product is `x`. `ConvBatchNorm` gives them.

        Returns:
          `y` of the shape of `x`.

        Raises:
          ValueError, TypeError: as in `jaxbn.batch_norm_train`. Inference does not
            check groups, masks and axis names.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "`use_running_average` must be given to the layer or to the call, got "
                "None in both; or call `train()` or `eval()` of the model."
            )
        on = switches.switches(
            self, use_running_average, update_running_average, self.frozen
        )
        x = jnp.asarray(x)
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        stats = self.batch_stats
        arguments.check_features(x, self.axis, stats.mean.shape)
        arrays = x, stats.mean, stats.var, scale, bias
        promoted = self.promote_dtype(arrays, dtype=self.dtype)
        accumulated = getattr(self, "accumulated", None)
        accumulating = accumulated is not None
        result = call.apply(
            self,
            on,
            x,
            scale,
            bias,
            stats,
            accumulating=accumulating,
            before=accumulated.get_value().moments if accumulating else None,
            mask=mask,
            residual=residual,
            factors=factors,
            dtype=promoted[0].dtype,
            initializing=False,
        )
        if result.accumulated is not None:
            self.accumulated.set_value(result.accumulated)
        if result.batch_stats is not None:
            _store(self, result.batch_stats)
        return result.y

    @property
    def batch_stats(self) -> BatchStats:
        """The running statistics, with the state of the policy, as arrays."""
        shapes = jax.eval_shape(lambda: call.init_batch_stats(self, (1,), jnp.float32))
        extra, variant = (
            {name: getattr(self, name)[...] for name in names}
            for names in (shapes.extra, shapes.variant)
        )
        found = (getattr(self, name, None) for name in ("batch_sync", "own_batch_sync"))
        values = [variable.get_value() for variable in found if variable is not None]
        sync = {name: part for value in values for name, part in value.items()}
        return BatchStats(self.mean[...], self.var[...], extra, sync, variant)

    def store(self, batch_stats: BatchStats) -> None:
        """Sets the running statistics and the state of the policy.

        Args:
          batch_stats: in the form of the property `batch_stats`.
        """
        _store(self, batch_stats)

    def begin_accumulation(self) -> None:
        """Starts to merge the moments of calls, which then update no statistics."""
        stats = running.widened(self.batch_stats, carried=False)
        self.accumulated = Accumulated(accumulation.nothing_yet(stats))

    def set_view(
        self,
        use_running_average: bool | None = None,
        update_running_average: bool | None = None,
    ) -> None:
        """Sets the switches that are given.

        `nnx.view` calls this method, and `nnx.view_info` shows its description.

        Args:
          use_running_average: normalise by the running statistics.
          update_running_average: update the running statistics.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if update_running_average is not None:
            self.update_running_average = update_running_average


class ConvBatchNorm(nnx.Module):
    """A 1x1 convolution, or a Linear layer, and its Batch Normalization as one.

    It computes `norm(conv(inputs))` and saves memory as `jaxbn.linen.ConvBatchNorm`
    does. Made where a model calls its layers, it adds no path to the model's state.

    Args:
      conv: a `flax.nnx.Conv` of kernel size 1 and any strides, or a `flax.nnx.Linear`,
        with `use_bias=False`.
      norm: a `BatchNorm` of this module, with `in_place=False`.

    Example:
      >>> conv = nnx.Linear(3, 8, use_bias=False, rngs=nnx.Rngs(0))
      >>> norm = BatchNorm(8, activation="relu", rngs=nnx.Rngs(1))
      >>> ConvBatchNorm(conv, norm)(jnp.ones((4, 3))).shape
      (4, 8)
    """

    def __init__(self, conv: nnx.Conv | nnx.Linear, norm: BatchNorm):
        self.conv = conv
        self.norm = norm

    def __call__(
        self,
        inputs: jax.typing.ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: jax.typing.ArrayLike | None = None,
        residual: jax.typing.ArrayLike | None = None,
        update_running_average: bool | None = None,
    ) -> jax.Array:
        """Returns the normalised result of the convolution.

        Args:
          inputs: `[N, ..., K]`.
          use_running_average: as in `BatchNorm`, and so are the others.
          mask: broadcastable to the result.
          residual: an array of the shape of the result.
          update_running_average: overrides the attribute of `norm`.

        Returns:
          `y`, `[N, ..., C]`.

        Raises:
          ValueError, TypeError: if `conv` or `norm` is not as described above, or as in
            `BatchNorm`.
        """
        x, factors = self.conv(jnp.asarray(inputs)), None
        if use_running_average is None:
            use_running_average = self.norm.use_running_average
        if use_running_average is False:
            factors = conv_batch_norm.factors(
                self.conv,
                self.norm,
                inputs,
                self.conv.kernel[...],
                x,
                convs=(nnx.Conv, nnx.Linear),
                promote_dtype=dtypes.promote_dtype,
            )
        return self.norm(
            x,
            use_running_average,
            mask=mask,
            residual=residual,
            update_running_average=update_running_average,
            factors=factors,
        )


def _shared_and_own(sync: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a policy's state into entries for all workers and entries per worker."""
    own = {name: sync[name] for name in sync if name in PER_WORKER}
    return {name: sync[name] for name in sync if name not in own}, own


def _store(layer: BatchNorm, batch_stats: BatchStats) -> None:
    """Sets the statistics; `nnx.tabulate` would list it if it were a method."""
    mean, var, extra, _, variant = batch_stats
    for name, value in {"mean": mean, "var": var, **extra, **variant}.items():
        variable = getattr(layer, name)
        if variable[...].dtype == value.dtype:
            variable[...] = value
        else:  # The first complex batch.
            variable.set_value(value)
    if batch_stats.sync:
        shared, own = _shared_and_own(batch_stats.sync)
        layer.batch_sync.set_value(shared)
        layer.own_batch_sync.set_value(own)
