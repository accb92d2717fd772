"""Moving Average Batch Normalization: averages over steps, forward and backward."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core import affine, collectives, reduction
from jaxbn._core.call import Call, Normalized
from jaxbn._core.moments import Moments
from jaxbn.variants._variant import Variant, next_step


def centralize(kernel: jax.Array) -> jax.Array:
    """Returns a kernel in which the weights of each output have mean 0.

    `MovingAverage` does not subtract the mean of the batch. With such kernels in the
    layers before it the mean stays small.

    Args:
      kernel: `[..., C]`, the kernel of a dense layer or a convolution of Flax.

    Example:
      >>> centralize(jnp.array([[1.0], [3.0]]))
      Array([[-1.],
             [ 1.]], dtype=float32)

    References:
      Yan et al., arXiv:2001.06838, Section 4.3.
    """
    return kernel - jnp.mean(kernel, range(kernel.ndim - 1), keepdims=True)


@dataclasses.dataclass(frozen=True)
class MovingAverage(Variant):
    """Moving Average Batch Normalization, for batches of few examples.

        z = x / sqrt(average(mean(x^2)) + epsilon)
        y = z * r * scale + bias,  r = clip(std / running std, 1 / r_max, r_max)
        dx = (dz - z * average(mean(dz * z))) / std

    The averages are over the last `window` steps, this one included. The mean is not
    subtracted: centralise the weights of the layer before (`centralize`). The running
    variance is the average of `mean(x^2)`, and the running mean is 0. The paper takes
    `momentum=0.98`. Several passes before one update (`jaxbn.accumulate`) leave only
    the last one in the averages.

    The average of the backward pass needs the steps of `jaxbn.training`, or
    `jaxbn.sync.exchange` after a step of your own, because sums of the backward pass
    are known only after it. Without them it is that of this step alone. The gradient is
    no derivative of the output, so there is no forward mode.

    Attributes:
      window: the number of steps; the paper takes the batch that it replaces, such as
        32 examples, divided by the examples of a batch.
      r_max: the limit of r.
      warmup_steps: the number of steps with r = 1.

    Raises:
      ValueError: if a setting is too small.

    Example:
      >>> sorted(MovingAverage(16).init((3,), jnp.dtype(jnp.float32)))
      ['everyone', 'received', 'sent', 'squares', 'steps']

    References:
      Yan et al., Towards Stabilizing Batch Statistics in Backward Propagation of Batch
      Normalization, arXiv:2001.06838, Section 4.
    """

    subtracts_mean = False

    window: int = 16
    r_max: float = 5.0
    warmup_steps: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("r_max", 1), ("warmup_steps", 0)):
            value = getattr(self, name)
            whole = name == "r_max" or isinstance(value, int)
            if not whole or not value >= least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> dict[str, Any]:
        """Returns empty windows, `[C, window - 1]` each, and no messages.

        With a window of 1 they have one slot, which is not used, because checkpoints
        cannot hold arrays without elements.
        """
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"`MovingAverage` is for real inputs, got {dtype}.")
        empty = jnp.zeros((*shape, max(self.window - 1, 1)), dtype)
        zero, none = jnp.zeros(shape, dtype), jnp.zeros((), dtype)
        return {
            "steps": jnp.zeros((), jnp.int32),
            "squares": empty,
            "everyone": {"product": empty, "count": none},
            "sent": {"product": zero[None], "count": none[None]},
            "received": {"product": zero, "count": none},
        }

    def normalize(self, call: Call, state: Any) -> Normalized:
        """Normalises by the average of the squares over the last steps."""
        call.check_no_groups("MovingAverage")
        spec = jax.typeof(call.x).sharding.spec
        if any(spec[a] for a in call.settings.feature_axes if a < len(spec)):
            raise ValueError(
                "The channels must not be split over Explicit axes of a mesh, got "
                f"{spec}; make a mesh of Auto axes."
            )
        if jnp.iscomplexobj(call.x):
            raise TypeError(f"`MovingAverage` is for real inputs, got {call.x.dtype}.")
        before = jax.lax.stop_gradient(state)
        found = jax.lax.stop_gradient(call.moments())
        square = found.var + jnp.square(found.mean)
        usable = jnp.all(jnp.isfinite(square) & (found.count > 0))
        steps, count = before["steps"], before["everyone"]["count"]
        slots = self.window - 1
        average = _average(before["squares"][..., :slots], steps, square, usable)
        products, count, is_new = _with_received(before, count)
        used = jnp.minimum(count, slots)

        std = jnp.sqrt(average + call.output.epsilon)
        running_std = jnp.sqrt(call.running_var + call.output.epsilon)
        r = std / jnp.where(running_std > 0, running_std, std)
        r = jnp.clip(r, 1 / self.r_max, self.r_max)
        r = jnp.where(steps >= self.warmup_steps, r, 1)
        sent = state["sent"]
        x = _with_average_product(
            call.settings,
            call.x,
            call.mask,
            jnp.where(std > 0, std, jnp.inf),
            found.count,
            jnp.sum(products[..., :slots], -1),
            1 / (used + 1),
            sent["product"],
        )
        y = call._replace(x=x, scale=call.scale * r, factors=None).by_statistics(
            jnp.zeros_like(average), average
        )

        pushed = _pushed(before["squares"], square)
        calls = jnp.where(is_new, 0, before["sent"]["count"]) + 1
        new = {
            "steps": next_step(steps, usable),
            "squares": jnp.where(usable, pushed, before["squares"]),
            "everyone": {"product": products, "count": count},
            "sent": {
                # Zeros, whose cotangent is passed on to the given message.
                "product": sent["product"] - jax.lax.stop_gradient(sent["product"]),
                "count": calls,
            },
            "received": jax.tree.map(lambda part: part - part, before["received"]),
        }
        moments = Moments(found.count, jnp.zeros_like(square), square)
        return Normalized(y, moments, new)


def _average(
    window: jax.Array, steps: jax.Array, now: jax.Array, usable: jax.Array
) -> jax.Array:
    """Returns the average of this step and of those in the window, `[C]`.

    A step that is not usable does not count, except if there is no other.
    """
    known = jnp.minimum(steps, window.shape[-1]).astype(now.dtype)
    counts = usable | (known == 0)
    total = jnp.sum(window, -1) + jnp.where(counts, now, 0)
    return total / (known + counts)


def _pushed(window: jax.Array, now: jax.Array) -> jax.Array:
    """Returns the window with this step at the front, without the oldest one."""
    return jnp.concatenate([now[..., None], window], -1)[..., : window.shape[-1]]


def _with_received(state: Any, count: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the products of the earlier steps, their number, and if one is new."""
    products, received = state["everyone"]["product"], state["received"]
    is_new = received["count"] > 0
    last = received["product"] / jnp.maximum(received["count"], 1)
    products = jnp.where(is_new, _pushed(products, last), products)
    most = products.shape[-1]
    return products, jnp.where(is_new, jnp.minimum(count + 1, most), count), is_new


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_average_product(
    settings: reduction.Settings,
    x: jax.Array,
    mask: jax.Array | None,
    std: jax.Array,
    count: jax.Array,
    past: jax.Array,
    share: jax.Array,
    sent: jax.Array,
) -> jax.Array:
    """Returns `x`; the derivative subtracts the averaged product from its cotangent.

    With `z = x / std` and its cotangent dz, the cotangent of x is `dz / std` on entry.
    This step's product is `mean(dz * z)`, which is also the cotangent of `sent`.

    Args:
      settings: the channel axes and the devices.
      x: `[N, ..., C]`.
      mask: of the rank of `x`, or None.
      std: the divisor, `[C]`.
      count: the number of valid elements, `[C]`.
      past: the sum of the products of the earlier steps, `[C]`.
      share: 1 / the number of steps in the average.
      sent: `[1, C]`, of any value.
    """
    del settings, mask, std, count, past, share, sent
    return x


def _forward(settings, x, mask, std, count, past, share, sent):
    return x, (x, mask, std, count, past, share, sent)


def _backward(settings, kept, dx):
    x, mask, std, count, past, share, sent = kept
    wide = affine.wide_dtype(x, std)
    expand = affine.expander(settings.feature_axes, x)
    values, cotangents = x.astype(wide), dx.astype(wide)
    if mask is not None:
        values = jnp.where(mask, values, 0)
    axes = reduction.reduction_axes(x.ndim, settings.feature_axes)
    total = jnp.sum(values * cotangents, axes)
    if settings.devices is not None:
        total = collectives.group_sum(total, settings.devices)
    now = total / jnp.maximum(count, 1)
    average = (past + now) * share
    slope = jnp.where(jnp.isfinite(std), average / jnp.square(std), 0)
    dx = (cotangents - values * expand(slope)).astype(dx.dtype)
    message = reduction.varying_as(now[None].astype(sent.dtype), sent)
    return dx, None, None, None, None, None, message


_with_average_product.defvjp(_forward, _backward)
