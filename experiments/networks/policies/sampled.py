"""All workers share the moments of a part of their examples."""

import dataclasses
import math

import jax.numpy as jnp

from jaxbn import sync


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The moments of the first examples of all workers.

    They normalise all examples. The collectives are those of exact synchronisation.

    Attributes:
      fraction: the part of every worker's examples that is used, in (0, 1]. The number
        of examples is rounded up.

    Raises:
      ValueError: if `fraction` is outside its range.

    References:
      Chen et al., arXiv:1810.10962.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` must lie in (0, 1], got {self.fraction}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> sync.State:
        """Returns an empty state."""
        return {}

    def normalize(self, call: sync.Call, state: sync.State) -> sync.Normalized:
        """Masks all but the first examples, and normalises by the moments of all."""
        here = call.x.shape[call.axis]  # A device has the examples of one worker.
        each = call.examples or here
        counts = jnp.arange(here) % each < math.ceil(self.fraction * each)
        others = [a for a in range(call.x.ndim) if a != call.axis]
        mask = jnp.expand_dims(counts, others)
        mask = mask if call.mask is None else mask & call.mask
        return sync.Normalized(*call._replace(mask=mask).by_all())
