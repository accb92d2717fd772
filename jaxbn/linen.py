"""`BatchNorm` for Flax Linen: change the import, keep model and checkpoints.

The parameters `params/{scale,bias}` and the state `batch_stats/{mean,var}` have the
names, shapes and dtypes of `flax.linen.BatchNorm`.

  >>> layer = BatchNorm(use_running_average=False)
  >>> x = jax.random.normal(jax.random.key(0), (8, 3))
  >>> variables = layer.init(jax.random.key(1), x)
  >>> jax.tree.map(jnp.shape, variables)
  {'batch_stats': {'mean': (3,), 'var': (3,)}, 'params': {'bias': (3,), 'scale': (3,)}}
  >>> y, updates = layer.apply(variables, x, mutable=['batch_stats'])
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes

from jaxbn._core import arguments, groups, moments, reduction
from jaxbn._layers import accumulation, call, conv_batch_norm, folded, switches
from jaxbn.estimators import BatchStats, EstimatorOrName

__all__ = ["BatchNorm", "ConvBatchNorm"]

SYNC = "batch_sync"
"""The collection for the states of policies of synchronisation."""


class BatchNorm(nn.BatchNorm):
    """Batch Normalization, a replacement for `flax.linen.BatchNorm`.

    The layer is a subclass of Flax's, with all its fields, in the same order and with
    the same meaning. Two defaults differ: the running variance is unbiased, and the
    variance is computed in a stable form.

    Flax has one switch for two choices. Here there are two switches, in the constructor
    or in the call: `use_running_average` decides which statistics normalise, and
    `update_running_average` decides whether the running statistics are updated.
    `jaxbn.freeze` stops the training of scale and bias.

    Initialisation updates nothing and needs no bound axis name.

    Attributes:
      axis: channel axis or axes of the input; all others are reduced.
      use_fast_variance: compute `E[x^2] - E[x]^2`, which is imprecise where the mean is
        large. The default is False.
      force_float32_reductions: False squares half-precision inputs in their own dtype,
        and rounds their moments to it. It also keeps the running statistics in
        `param_dtype`, as in Flax.
      group_size: with `axis_name`, the number of neighbouring devices that share
        statistics. Without an axis name, the number of examples that share them. With
        "local" each device is a group. See `jaxbn.batch_norm_train`.
      unbiased: True updates the running variance with `var * m / (m - 1)`, where `m`
        counts the global batch (the paper, PyTorch). False updates it with `var`
        (Flax).
      activation: a function that is applied to the result: "relu", "leaky_relu",
        "silu", "gelu" or None. The backward pass recomputes what it needs, and keeps
        nothing more.
      variance: the form in which the variance is computed: "auto" (the stable form that
        is cheapest where the program runs), "unconditional" or "fast". See
        `jaxbn.batch_norm_train`.
      in_place: keep the result for the backward pass instead of the input. This works
        for activation None and "leaky_relu". See `jaxbn.batch_norm_train`.
      update_running_average: update the running statistics. Default: True if the batch
        is normalised by its own statistics, else False.
      estimator: the rule that updates the running statistics. "ema" is the moving
        average of Flax. "debiased" is this average without the initial values, correct
        from the first batch. "cumulative" averages over all batches, and "window" over
        the last hundred. An estimator of `jaxbn.estimators` has settings of its own.
        All but "ema" keep further variables beside `mean` and `var`, and
        `jaxbn.reset_batch_stats` resets them.
      sync: a policy of `jaxbn.sync` by which workers share statistics. Workers are the
        devices along `axis_name`, or parts of `group_size` examples. The collection
        `batch_sync` holds the state of the policy.
      variant: a relative of Batch Normalization from `jaxbn.variants`. It may keep
        further variables beside `mean` and `var`.

    Example:
      >>> layer, x = BatchNorm(momentum=0.9), jnp.arange(8.0)[:, None]
      >>> variables = layer.init(jax.random.key(0), x, use_running_average=True)
      >>> y, updates = layer.apply(
      ...     variables, x, use_running_average=False, mutable=["batch_stats"]
      ... )
      >>> updates["batch_stats"]["mean"]
      Array([0.35], dtype=float32)

    References:
      Ioffe and Szegedy, arXiv:1502.03167.
    """

    axis: Any = -1  # An int, or several.
    axis_name: Any = None  # A name, or several.
    use_fast_variance: bool = False
    group_size: groups.GroupSize | None = dataclasses.field(default=None, kw_only=True)
    unbiased: bool = dataclasses.field(default=True, kw_only=True)
    activation: str | None = dataclasses.field(default=None, kw_only=True)
    in_place: bool = dataclasses.field(default=False, kw_only=True)
    variance: reduction.Variance = dataclasses.field(default="auto", kw_only=True)
    update_running_average: bool | None = dataclasses.field(default=None, kw_only=True)
    estimator: EstimatorOrName = dataclasses.field(default="ema", kw_only=True)
    sync: Any = dataclasses.field(default=None, kw_only=True)
    variant: Any = dataclasses.field(default=None, kw_only=True)

    @nn.compact
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
          use_running_average: see the class; give it either there or here.
          mask: broadcastable to `x`, True where an element counts for the statistics.
          residual: an array of the shape of `x` that is added before the activation.
          update_running_average: overrides the field of the class.
          factors: `(inputs, kernel)` whose product is `x`. `ConvBatchNorm` gives them.

        Returns:
          `y` of the shape of `x`.

        Raises:
          ValueError, TypeError: as in `jaxbn.batch_norm_train`. Inference does not
            check groups, masks and axis names.
        """
        on = switches.switches(
            self,
            nn.merge_param(
                "use_running_average", self.use_running_average, use_running_average
            ),
            update_running_average,
            switches.FROZEN.get(),
        )
        x = jnp.asarray(x)
        shape = call.channels(self, x)
        if self.has_variable(folded.COLLECTION, "dtype"):
            return self._folded(x, on, residual)
        variables = self._variables(on, shape, x.dtype)
        scale = self._param("scale", shape) if self.use_scale else None
        bias = self._param("bias", shape) if self.use_bias else None
        accumulating = self._is_accumulating()
        result = call.apply(
            self,
            on,
            x,
            scale,
            bias,
            jax.tree.map(lambda variable: variable.value, variables),
            accumulating=accumulating,
            before=self._moments_before() if accumulating else None,
            mask=mask,
            residual=residual,
            factors=factors,
            dtype=dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype),
            initializing=self.is_initializing(),
            path="/".join(self.path),
        )
        if result.accumulated is not None:
            for name, value in accumulation.as_variables(result.accumulated).items():
                self.put_variable(accumulation.NAME, name, value)
        if result.batch_stats is not None:
            jax.tree.map(_store, variables, result.batch_stats)
        return result.y

    @nn.nowrap
    def _variables(self, on, shape, x_dtype) -> Any:
        """Returns `BatchStats` with a Flax variable in the place of every array.

        The state of the policy or variant is left out in inference, which does not need
        it.
        """
        new = functools.partial(call.init_batch_stats, self, shape, x_dtype)
        entries = jax.eval_shape(new)
        training = on.update_running_average or not on.use_running_average
        if not (training or self.is_initializing() or arguments.infers(self.variant)):
            entries = entries._replace(sync={}, variant={})

        def of_layer(name, read):
            return self.variable("batch_stats", name, lambda: read(new())[name])

        def of_policy(name):
            return self.variable(SYNC, name, lambda: new().sync[name])

        variables: Any = (
            of_layer("mean", BatchStats._asdict),
            of_layer("var", BatchStats._asdict),
            {name: of_layer(name, lambda stats: stats.extra) for name in entries.extra},
            {name: of_policy(name) for name in entries.sync},
            {
                name: of_layer(name, lambda stats: stats.variant)
                for name in entries.variant
            },
        )
        return BatchStats(*variables)

    @nn.nowrap
    def _folded(self, x, on, residual):
        """Returns the output of a layer that `jaxbn.fold` has folded."""
        scale, bias, promoted = (
            self.get_variable(folded.COLLECTION, name)
            for name in ("scale", "bias", "dtype")
        )
        return folded.apply(
            x,
            scale,
            bias,
            use_running_average=on.use_running_average,
            update_running_average=on.update_running_average,
            axis=self.axis,
            residual=residual,
            activation=self.activation,
            dtype=dtypes.canonicalize_dtype(x, promoted, dtype=self.dtype),
        )

    @nn.nowrap
    def _is_accumulating(self):
        """Returns whether this pass is one of several before a single update.

        This is the case only if `mutable` names the collection. `mutable=True` does not
        name it: it stands for all collections that a model has.
        """
        asked_for, whatever = (
            self.is_mutable_collection(name)
            for name in (accumulation.NAME, "no collection of this name")
        )
        return asked_for and not whatever and not self.is_initializing()

    @nn.nowrap
    def _moments_before(self):
        """Returns the moments of the passes before this one; None in the first pass."""
        given = self.get_variable(accumulation.NAME, "moments")
        if given is None:
            accumulation.check_can_be_made("/".join(self.path))
            return None
        return moments.Moments(*given)

    @nn.nowrap
    def _param(self, name, shape):
        if self.has_variable("params", name):  # Flax's own error has no remedy.
            given = nn.meta.unbox(self.get_variable("params", name))
            arguments.check_channels(name, given, shape)
        init = self.scale_init if name == "scale" else self.bias_init
        return self.param(name, init, shape, self.param_dtype)


class ConvBatchNorm(nn.Module):
    """A 1x1 convolution, or a Dense layer, and its Batch Normalization as one.

    It computes `norm(conv(inputs))`. In training, the gradient is computed from the
    inputs of the convolution instead of its result, so that the result is not kept.
    This saves memory where the convolution has more output channels, C, than input
    channels, K, such as at the end of a bottleneck block. The extra work is `2 K / C`
    times the work of the kernel's gradient.

    The result is kept as without this class if C is at most K, if the batch has less
    than 4 K positions, and in the cases that `factors` of `jaxbn.batch_norm_train`
    names.

    Both layers keep the names and the parameters that they have without this class, so
    checkpoints stay as they are. Make it in a compact method, or declare it in `setup`
    after both layers.

    Attributes:
      conv: a `flax.linen.Conv` of kernel size 1 and any strides, or a
        `flax.linen.Dense`, with `use_bias=False`.
      norm: a `BatchNorm` of this module, with `in_place=False`.

    Example:
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         conv = nn.Conv(8, (1, 1), use_bias=False)
      ...         norm = BatchNorm(use_running_average=False, activation="relu")
      ...         return ConvBatchNorm(conv, norm)(x)
      >>> variables = Block().init(jax.random.key(0), jnp.ones((2, 4, 4, 3)))
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'BatchNorm_0': {'bias': (8,), 'scale': (8,)}, 'Conv_0': {'kernel': (1, 1, 3, 8)}}
    """

    conv: nn.Conv | nn.Dense
    norm: BatchNorm

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
          update_running_average: overrides the field of `norm`.

        Returns:
          `y`, `[N, ..., C]`.

        Raises:
          ValueError, TypeError: if `conv` or `norm` is not as described above, or as in
            `BatchNorm`.
        """
        x, factors = self.conv(inputs), None
        is_inference = nn.merge_param(
            "use_running_average", self.norm.use_running_average, use_running_average
        )
        if not is_inference:
            factors = conv_batch_norm.factors(
                self.conv,
                self.norm,
                inputs,
                nn.meta.unbox(self.conv.get_variable("params", "kernel")),
                x,
                convs=(nn.Conv, nn.Dense),
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


def _store(variable, value):
    variable.value = value
