"""Batch Normalization with statistics of its own for each domain.

A layer for each domain normalises the examples of that domain; the mask hides the
others. The layers are `BatchNorm` layers, so all options and tools work on them.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.linen import dtypes

import jaxbn
from jaxbn import linen
from jaxbn import nnx as jaxbn_nnx
from jaxbn._core import arguments, reduction

Domain = int | jax.Array
"""The domain of a whole batch, or of every example, `[N]`, as integers."""


def _by_domain(
    layers: Sequence[Callable[..., jax.Array]],
    axis: int | Sequence[int],
    x: jax.Array,
    domain: Domain,
    mask: jax.typing.ArrayLike | None,
) -> jax.Array:
    """Normalises every example by the layer of its domain.

    Args:
      layers: one function of `x` and `mask` for each domain.
      axis: channel axis or axes of `x`.
      x: `[N, ..., C]`.
      domain: an int, or an array `[N]` or `[]`.
      mask: broadcastable to `x`, or None.
    """
    if isinstance(domain, int):
        if not 0 <= domain < len(layers):
            raise ValueError(
                f"`domain` must lie in [0, {len(layers)}), got {domain}; `domains` of "
                "the layer is their number."
            )
        return layers[domain](x, mask)
    domain = jnp.asarray(domain)
    feature_axes = arguments.as_feature_axes(axis, x.ndim)
    batch_axis = reduction.reduction_axes(x.ndim, feature_axes)[0]
    if (
        domain.shape not in ((), (x.shape[batch_axis],))
        or domain.dtype.kind not in "iu"
    ):
        raise ValueError(
            "`domain` must be an int or an integer array of shape "
            f"{(x.shape[batch_axis],)}, one index per example, got {domain.dtype}"
            f"{list(domain.shape)}."
        )
    domain = domain.reshape([-1 if a == batch_axis else 1 for a in range(x.ndim)])
    mask = arguments.as_mask(mask, x.shape)
    results = []
    for index, layer in enumerate(layers):
        here = domain == index
        results.append(layer(x, here if mask is None else here & mask))
    y = results[0]
    for index, result in enumerate(results[1:], 1):
        y = jnp.where(domain == index, result, y)
    return y


def domain_batch_norm_train(
    x: jax.typing.ArrayLike,
    scale: Any,
    bias: Any,
    batch_stats: Sequence[jaxbn.BatchStats],
    domain: Domain,
    *,
    axis: int | Sequence[int] = -1,
    mask: jax.typing.ArrayLike | None = None,
    **options: Any,
) -> tuple[jax.Array, tuple[jaxbn.BatchStats, ...]]:
    """Normalises every example by the batch's statistics of its domain.

    Args:
      x: `[N, ..., C]`.
      scale: `[C]` or None, or a list of them, one for each domain.
      bias: as `scale`.
      batch_stats: the running statistics of each domain.
      domain: an int for the whole batch, or an integer array `[N]`.
      axis: channel axis or axes of `x`.
      mask: broadcastable to `x`, or None.
      **options: other options of `jaxbn.batch_norm_train`, without `residual`.

    Returns:
      `y` of the shape of `x`, and the new statistics of each domain.

    Raises:
      ValueError, TypeError: if `domain` does not fit, or as in `batch_norm_train`.

    Example:
      >>> stats = [jaxbn.init_batch_stats(3)] * 2
      >>> x, domain = jnp.ones((4, 3)), jnp.array([0, 1, 1, 0])
      >>> y, stats = domain_batch_norm_train(x, None, None, stats, domain)
      >>> len(stats)
      2

    References:
      Those of `DomainBatchNorm`.
    """
    new = list(batch_stats)

    def of(index: int) -> Callable[..., jax.Array]:
        def apply(x: jax.Array, mask: jax.Array | None) -> jax.Array:
            parameters = _of_domain(scale, index), _of_domain(bias, index)
            stats = batch_stats[index]
            y, new[index] = jaxbn.batch_norm_train(
                x, *parameters, stats, axis=axis, mask=mask, **options
            )
            return y

        return apply

    layers = list(map(of, range(len(batch_stats))))
    y = _by_domain(layers, axis, jnp.asarray(x), domain, mask)
    return y, tuple(new)


def domain_batch_norm_inference(
    x: jax.typing.ArrayLike,
    scale: Any,
    bias: Any,
    batch_stats: Sequence[jaxbn.BatchStats],
    domain: Domain,
    *,
    axis: int | Sequence[int] = -1,
    **options: Any,
) -> jax.Array:
    """Normalises every example by the running statistics of its domain.

    Args:
      x: `[N, ..., C]`.
      scale: as in `domain_batch_norm_train`, and so are the others.
      bias: as `scale`.
      batch_stats: the running statistics of each domain.
      domain: an int for the whole batch, or an integer array `[N]`.
      axis: channel axis or axes of `x`.
      **options: other options of `jaxbn.batch_norm_inference`.

    Returns:
      `y` of the shape of `x`.

    Raises:
      ValueError, TypeError: if `domain` does not fit, or as in `batch_norm_inference`.

    Example:
      >>> stats = [jaxbn.init_batch_stats(3)] * 2
      >>> domain_batch_norm_inference(jnp.ones((4, 3)), None, None, stats, 1).shape
      (4, 3)
    """

    def of(index: int) -> Callable[..., jax.Array]:
        parameters = _of_domain(scale, index), _of_domain(bias, index)
        return lambda x, mask: jaxbn.batch_norm_inference(
            x, *parameters, batch_stats[index], axis=axis, mask=mask, **options
        )

    layers = list(map(of, range(len(batch_stats))))
    return _by_domain(layers, axis, jnp.asarray(x), domain, None)


def _of_domain(parameter: Any, index: int) -> Any:
    """Returns the parameter of a domain; one that is not a list is shared."""
    return parameter[index] if isinstance(parameter, (list, tuple)) else parameter


# The options of the layers of the domains if scale and bias are shared.
_WITHOUT_AFFINE: dict[str, Any] = {
    "use_scale": False,
    "use_bias": False,
    "activation": None,
    "in_place": False,
}


def _shared_affine(
    x_hat: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    residual: jax.typing.ArrayLike | None,
    *,
    axis: int | Sequence[int],
    activation: str | None,
    dtype: Any,
) -> jax.Array:
    """Applies a scale and a bias, a residual and an activation to `x_hat`."""
    shape = [x_hat.shape[a] for a in arguments.as_feature_axes(axis, x_hat.ndim)]
    identity = jaxbn.BatchStats(jnp.zeros(shape, x_hat.dtype), jnp.ones(shape))
    return jaxbn.batch_norm_inference(
        x_hat,
        scale,
        bias,
        identity,
        axis=axis,
        epsilon=0.0,
        residual=residual,
        activation=activation,
        dtype=dtype,
    )


def as_number(domains: Any) -> int:
    """Returns the number of domains.

    Raises:
      ValueError: if it is not a positive integer.
    """
    try:
        number = operator.index(domains)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(
            f"`domains` must be an integer of at least 1, got {domains!r}."
        )
    return number


class DomainBatchNorm(linen.BatchNorm):
    """Batch Normalization with statistics for each domain, for Flax Linen.

    Every domain has its own running statistics, and its own scale and bias unless they
    are `shared`. In training the examples of a domain are normalised by themselves
    alone. If `domain` is an int, the layer costs as much as one `BatchNorm`, otherwise
    as much as one per domain.

    The layers `domain_0`, `domain_1` and so on are of `jaxbn.linen.BatchNorm`, with the
    options of this layer. With `shared`, scale and bias belong to this layer, which
    applies them after the normalisation. The backward pass then keeps one more array of
    the size of `x`.

    Attributes:
      domains: the number of domains.
      shared: one scale and bias for all domains.

    Example:
      >>> layer = DomainBatchNorm(use_running_average=False, domains=2, shared=True)
      >>> x, domain = jnp.ones((4, 3)), jnp.array([0, 1, 1, 0])
      >>> variables = layer.init(jax.random.key(0), x, domain=domain)
      >>> sorted(variables["params"]), sorted(variables["batch_stats"])
      (['bias', 'scale'], ['domain_0', 'domain_1'])

    References:
      Chang et al., Domain-Specific Batch Normalization, arXiv:1906.03950. Xie et al.,
      Adversarial Examples Improve Image Recognition (AdvProp), arXiv:1911.09665. Wu and
      Johnson, arXiv:2105.07576, Section 5, for `shared`.
    """

    domains: int = dataclasses.field(default=2, kw_only=True)
    shared: bool = dataclasses.field(default=False, kw_only=True)

    @nn.compact
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        use_running_average: bool | None = None,
        *,
        domain: Domain,
        mask: jax.typing.ArrayLike | None = None,
        residual: jax.typing.ArrayLike | None = None,
        update_running_average: bool | None = None,
    ) -> jax.Array:
        """Normalises every example by the statistics of its domain.

        Args:
          x: `[N, ..., C]`.
          use_running_average: as in `BatchNorm`, and so are all but `domain`.
          domain: an int for the whole batch, or an integer array `[N]`. Examples with
            an index of no domain count for none, and are normalised as if they were of
            domain 0.
          mask: broadcastable to `x`.
          residual: an array of the shape of `x`.
          update_running_average: overrides the field.

        Returns:
          `y` of the shape of `x`.

        Raises:
          ValueError: if `domain` does not fit, and as in `BatchNorm`.
        """
        x = jnp.asarray(x)
        names = {field.name for field in dataclasses.fields(linen.BatchNorm)}
        options = {name: getattr(self, name) for name in names - {"parent", "name"}}
        inner = {"dtype": reduction.reduction_dtype(x.dtype), **_WITHOUT_AFFINE}
        inner = inner if self.shared else {}
        layers = [
            linen.BatchNorm(**{**options, **inner}, name=f"domain_{index}")
            for index in range(as_number(self.domains))
        ]

        def of(layer: linen.BatchNorm) -> Callable[..., jax.Array]:
            return lambda x, mask: layer(
                x,
                use_running_average,
                mask=mask,
                residual=None if self.shared else residual,
                update_running_average=update_running_average,
            )

        if self.is_initializing():  # All domains get their variables.
            domain = jnp.zeros((), jnp.int32)
        y = _by_domain(list(map(of, layers)), self.axis, x, domain, mask)
        if not self.shared:
            return y
        shape = tuple(x.shape[a] for a in arguments.as_feature_axes(self.axis, x.ndim))
        scale = self._param("scale", shape) if self.use_scale else None
        bias = self._param("bias", shape) if self.use_bias else None
        return _shared_affine(
            y,
            scale,
            bias,
            residual,
            axis=self.axis,
            activation=self.activation,
            dtype=dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype),
        )


class NnxDomainBatchNorm(nnx.Module):
    """Batch Normalization with statistics for each domain, for Flax NNX.

    See `DomainBatchNorm`. The attribute `layers` holds one `jaxbn.nnx.BatchNorm` for
    each domain. With `shared`, scale and bias are those of this module.

    Args:
      num_features: the size of the channel axis.
      domains: the number of domains.
      shared: one scale and bias for all domains.
      rngs: random keys for scales and biases.
      **options: options of `jaxbn.nnx.BatchNorm`.

    Example:
      >>> layer = NnxDomainBatchNorm(3, 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((4, 3)), domain=jnp.array([0, 1, 1, 0])).shape
      (4, 3)
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        domains: int,
        *,
        shared: bool = False,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ):
        make = functools.partial(jaxbn_nnx.BatchNorm, num_features, rngs=rngs)
        layer = make(**options)
        self.scale = layer.scale if shared else nnx.data(None)
        self.bias = layer.bias if shared else nnx.data(None)
        self.shared = shared
        self.axis, self.activation = layer.axis, layer.activation
        self.dtype, self.promote_dtype = layer.dtype, layer.promote_dtype
        if shared:
            # Without a dtype `x_hat` has that of the statistics, or a wider one of x.
            options |= {**_WITHOUT_AFFINE, "dtype": None}
        self.layers = nnx.List([make(**options) for _ in range(as_number(domains))])

    def __call__(
        self,
        x: jax.typing.ArrayLike,
        use_running_average: bool | None = None,
        *,
        domain: Domain,
        mask: jax.typing.ArrayLike | None = None,
        residual: jax.typing.ArrayLike | None = None,
        update_running_average: bool | None = None,
    ) -> jax.Array:
        """Normalises every example by the statistics of its domain.

        Args:
          x: `[N, ..., C]`.
          use_running_average: as in `DomainBatchNorm`, and so are all others.
          domain: an int, or an integer array `[N]`.
          mask: broadcastable to `x`.
          residual: an array of the shape of `x`.
          update_running_average: overrides the attribute.

        Returns:
          `y` of the shape of `x`.

        Raises:
          ValueError: as in `DomainBatchNorm`.
        """

        def of(layer: jaxbn_nnx.BatchNorm) -> Callable[..., jax.Array]:
            return lambda x, mask: layer(
                x,
                use_running_average,
                mask=mask,
                residual=None if self.shared else residual,
                update_running_average=update_running_average,
            )

        x, layers = jnp.asarray(x), list(map(of, self.layers))
        y = _by_domain(layers, self.axis, x, domain, mask)
        if not self.shared:
            return y
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        promoted = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        return _shared_affine(
            y,
            scale,
            bias,
            residual,
            axis=self.axis,
            activation=self.activation,
            dtype=promoted[0].dtype,
        )
