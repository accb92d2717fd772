"""Policies that need nothing of earlier steps: all workers, groups, or each alone."""

import dataclasses

import jax.numpy as jnp

from jaxbn.call import Call
from jaxbn.sync_policies.policy import Normalized, State


@dataclasses.dataclass(frozen=True)
class Exact:
    """The moments of all workers: two collectives per layer, waited for.

    What an axis name alone means.
    """

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """No state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """By all."""
        return Normalized(*call.by_all(), state)


@dataclasses.dataclass(frozen=True)
class Group:
    """The moments of groups of neighbouring workers.

    The running statistics are those of all workers, for which a row of moments of every
    device is sent: on thousands of devices more than `Exact` sends.

    Attributes:
      size: workers per group, a divisor of their number.

    References:
      Ying et al., arXiv:1811.06992.
    """

    size: int

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise TypeError(f"`size` must be an int, got {self.size!r}.")
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1, got {self.size}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """No state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """By groups."""
        return Normalized(*call.by_groups(self.size), state)


@dataclasses.dataclass(frozen=True)
class Local:
    """Every worker's own moments; no layer waits in the forward pass.

    The running statistics are those of all workers, for which their moments are sent:
    beyond 32 devices in two collectives, for the first of which a compiler may make the
    backward pass wait.
    """

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """No state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """By each worker's own."""
        return Normalized(*call.by_groups(1), state)


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The moments of the first examples of all workers.

    All examples are normalised by them. The collectives are those of `Exact`.

    Attributes:
      fraction: of every worker's examples, rounded up, in (0, 1].

    References:
      Chen et al., arXiv:1810.10962.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` must lie in (0, 1], got {self.fraction}.")

    def init(self, shape: tuple[int, ...], dtype: jnp.dtype) -> State:
        """No state."""
        return {}

    def normalize(self, call: Call, state: State) -> Normalized:
        """By all, of a part of their examples."""
        return Normalized(*call.counting(self.fraction).by_all(), state)
