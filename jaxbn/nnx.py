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

from jaxbn import checks, layer, nnx_variables, switches, sync_policies
from jaxbn.core import reduction
from jaxbn.estimation import EstimatorOrName
from jaxbn.grouping import GroupSize

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class BatchNorm(nnx.Module):
    """Batch Normalization, a replacement for `flax.nnx.BatchNorm`.

    The layer has all arguments and attributes of Flax's layer, with the same meaning.
    Two defaults differ: the running variance is unbiased, and the variance is computed
    in a stable form. The running statistics are used in float32; Flax rounds them to
    `dtype`. The first complex batch makes the mean complex; Flax drops the imaginary
    part. `jaxbn.linen.BatchNorm` describes the options that Flax does not have.

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
      use_fast_variance: compute `E[x^2] - E[x]^2`, whatever precision that loses.
      promote_dtype: a function that decides the dtype of the result. It receives the
        arrays (x, mean, var, scale, bias) and `dtype`. The result has the dtype of the
        first array that it returns.
      rngs: random keys for scale and bias; not needed without them.
      bias_metadata, scale_metadata: metadata of the variables of bias and scale.

    Raises:
      ValueError: if `rngs` is missing where there are parameters.

    References:
      Ioffe and Szegedy, arXiv:1502.03167.
    """

    mean: nnx.BatchStat
    var: nnx.BatchStat

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
        force_float32_reductions: bool = True,
        group_size: GroupSize | None = None,
        unbiased: bool = True,
        activation: str | None = None,
        in_place: bool = False,
        variance: reduction.Variance = "auto",
        update_running_average: bool | None = None,
        estimator: EstimatorOrName = "ema",
        sync: sync_policies.Policy | None = None,
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
        groups = axis_index_groups
        self.axis_index_groups = None if groups is None else tuple(map(tuple, groups))
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.force_float32_reductions = force_float32_reductions
        self.group_size = group_size
        self.unbiased = unbiased
        self.activation = activation
        self.in_place = in_place
        self.variance = variance
        self.update_running_average = update_running_average
        self.frozen = switches.Frozen()  # Set by `jaxbn.freeze`.
        self.estimator = estimator
        self.sync = sync

        shape = layer.as_channels(num_features)
        state = layer.init_state(self, shape, jnp.dtype(param_dtype))
        for name, value in state._asdict().items():  # `mean`, `var`, maybe more.
            setattr(self, name, nnx.BatchStat(value))
        synced = layer.init_sync(self, shape, jnp.dtype(param_dtype))
        nnx_variables.begin_sync(self, synced)

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
    ) -> jax.Array:
        """Normalises `x`, and updates the running statistics if that is switched on.

        Args:
          x: `[N, ..., C]`.
          use_running_average: overrides the attribute.
          mask: broadcastable to `x`, True where an element counts for the statistics.
          residual: an array of the shape of `x` that is added before the activation.
          update_running_average: overrides the attribute.

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
        state = nnx_variables.read(self, layer.state_type(self))
        checks.check_features(x, self.axis, state.mean.shape)
        collected = getattr(self, "collected", None)
        arrays = x, state.mean, state.var, scale, bias
        promoted = self.promote_dtype(arrays, dtype=self.dtype)
        y, moved, synced = layer.apply(
            self,
            on,
            x,
            scale,
            bias,
            state,
            sync_state=nnx_variables.read_sync(self),
            collected=None if collected is None else collected.get_value().moments,
            collecting=collected is not None,
            mask=mask,
            residual=residual,
            dtype=promoted[0].dtype,
            initializing=False,
        )
        if moved is not None and collected is not None:
            collected.set_value(moved)
        elif moved is not None:
            nnx_variables.write(self, moved)
        if synced:
            nnx_variables.write_sync(self, synced)
        return y

    def collect(self) -> None:
        """Starts to collect the moments of calls in `self.collected`.

        The calls that follow merge their moments there and do not update the
        statistics.
        """
        state = nnx_variables.read(self, layer.state_type(self))
        first = layer.before_the_first_pass(self, state)
        self.collected = nnx_variables.Collected(first)

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
