"""Cross-Iteration Batch Normalization: moments of earlier batches, up to date."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn._core import affine, collectives
from jaxbn._core.call import Call, Normalized
from jaxbn._core.moments import Moments
from jaxbn.variants._variant import State, Variant, next_step


@dataclasses.dataclass(frozen=True)
class CrossIteration(Variant):
    """Cross-Iteration Batch Normalization, for batches of few examples.

    The moments are those of the last `window` batches together. Those of an earlier
    batch were computed by earlier weights W_old of the linear layer before this one.
    A Taylor expansion brings them to the weights W of today:

        mean   <- mean + d mean / dW * (W - W_old)
        E[x^2] <- E[x^2] + d E[x^2] / dW * (W - W_old)

    The gradient flows through the moments of this batch alone. The running statistics
    follow this batch alone. The layer needs the inputs of the linear layer: wrap both
    in `ConvBatchNorm`, or give `factors` to the call. Several passes before one update
    (`jaxbn.accumulate`) leave only the last one among the batches.

    Attributes:
      inputs: the number of input channels of the linear layer, the rows of its kernel.
      window: the number of batches, this one included. 1 is Batch Normalization.
      warmup_steps: the number of steps with a window of 1. The expansion is only good
        where weights change little from step to step, so the paper lets a part of the
        training pass first (25 of 100 epochs on ImageNet).

    Raises:
      ValueError: if `inputs` or `window` is below 1; if a call has no `factors`, or a
        mask that differs between channels; if a mesh of Explicit axes splits `x`.

    Example:
      >>> state = CrossIteration(inputs=5, window=4).init((3,), jnp.dtype(jnp.float32))
      >>> jax.tree.map(jnp.shape, state)["slopes"]
      (3, 5, 3)

    References:
      Yao et al., Cross-Iteration Batch Normalization, arXiv:2002.05712, Equations 8 to
      14.
    """

    inputs: int
    window: int = 4
    warmup_steps: int = 0

    needs_factors = True

    def __post_init__(self) -> None:
        for name in ("inputs", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an int of at least 1, got {value}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """Returns empty slots, one for each earlier batch.

        With a window of 1 there is one slot, which is not used, because checkpoints
        cannot hold arrays without elements.
        """
        slots = max(self.window - 1, 1)

        def zeros(*sizes: int) -> jax.Array:
            return jnp.zeros((slots, *sizes), dtype)

        return {
            "steps": jnp.zeros((), jnp.int32),
            "known": zeros(),  # 1 for slots with a batch, 0 for empty ones.
            "batch_means": zeros(*shape),
            "batch_vars": zeros(*shape),
            "input_means": zeros(self.inputs),
            "slopes": zeros(self.inputs, *shape),  # d variance / d kernel.
        }

    def normalize(self, call: Call, state: State) -> Normalized:
        """Normalises by the moments of the last batches together."""
        call.check_no_groups("CrossIteration")
        factors = call.factors
        if factors is None or factors.kernel.shape[0] != self.inputs:
            got = None if factors is None else factors.kernel.shape
            raise ValueError(
                f"`CrossIteration` needs `factors` with a kernel of {self.inputs} "
                f"rows, got {got}; wrap the layer and the linear layer before it in "
                "`ConvBatchNorm`."
            )
        if call.mask is not None and call.mask.shape[-1] != 1:
            raise ValueError("`mask` must be the same for all channels.")
        if any(jax.typeof(call.x).sharding.spec):
            raise ValueError(
                "`x` must not be split over Explicit axes of a mesh, because products "
                "over examples are rejected there; make a mesh of Auto axes."
            )
        now = call.moments()
        dtype = now.mean.dtype
        kernel = jax.lax.stop_gradient(factors.kernel).astype(dtype)
        warm = (state["steps"] >= self.warmup_steps) & (self.window > 1)
        known = jnp.where(warm, state["known"], 0)
        number = jnp.sum(known) + 1
        matmul = jax.lax.Precision.HIGHEST
        means = jnp.matmul(state["input_means"], kernel, precision=matmul)
        # The expansion of `E[x^2]`, less the square of the mean. About the old means
        # nothing cancels.
        linear = jnp.sum(state["slopes"] * kernel[None], 1) - state["batch_vars"]
        variances = linear - jnp.square(means - state["batch_means"])
        variances = jnp.maximum(variances, 0)
        # This is the law of total variance, with the same weight for all batches.
        weight = known[:, None]
        old_mean = jnp.sum(weight * (means - now.mean[None]), 0) / number
        mean = now.mean + old_mean + now.tail
        spread = jnp.sum(weight * (variances + jnp.square(means - mean[None])), 0)
        var = (now.var + jnp.square(now.mean - mean) + spread) / number
        y = call.by_statistics(mean, var)

        state = dict(state)
        steps = state.pop("steps")
        new = jax.lax.stop_gradient(self._slot(call, now))
        usable = jnp.all(
            jnp.array([jnp.all(jnp.isfinite(part)) for part in new.values()])
        )
        usable = usable & jnp.all(now.count > 0)
        pushed = {
            name: jnp.where(
                usable, jnp.concatenate([new[name][None], old])[: len(old)], old
            )
            for name, old in state.items()
        }
        return Normalized(y, now, {**pushed, "steps": next_step(steps, usable)})

    def _slot(self, call: Call, now: Moments) -> dict[str, jax.Array]:
        """Returns the moments of this batch, and their derivatives by the kernel."""
        factors: Any = call.factors
        dtype = now.mean.dtype
        inputs = factors.inputs.astype(dtype)
        expand = affine.expander(call.settings.feature_axes, call.x)
        centered = call.x.astype(dtype) - expand(now.mean) - expand(now.tail)
        if call.mask is not None:
            inputs = jnp.where(call.mask, inputs, 0)
            centered = jnp.where(call.mask, centered, 0)
        axes = list(range(inputs.ndim - 1))
        precision = jax.lax.Precision.HIGHEST
        slopes = jnp.tensordot(inputs, centered, (axes, axes), precision=precision)
        total = jnp.sum(inputs, axes)
        if call.settings.devices is not None:
            sums = jnp.concatenate([total[:, None], slopes], 1)
            sums = collectives.group_sum(sums, call.settings.devices)
            total, slopes = sums[:, 0], sums[:, 1:]
        count = jnp.maximum(now.count, 1)
        return {
            "known": jnp.ones((), dtype),
            "batch_means": now.mean,
            "batch_vars": now.var,
            "input_means": total / count[0],
            "slopes": 2 * slopes / count[None],
        }
