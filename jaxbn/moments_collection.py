"""The collection `batch_moments`: moments of several passes of a Linen model.

Where `mutable` names it, layers merge the moments of every pass into it and leave the
running statistics alone; `move_batch_stats` then makes one update of the whole.

  >>> import flax.linen as nn
  >>> from jaxbn.linen import BatchNorm
  >>> layer = BatchNorm(use_running_average=False, momentum=0.0)
  >>> x = jax.random.normal(jax.random.key(0), (8, 3))
  >>> variables = layer.init(jax.random.key(1), x)
  >>> for part in (x[:2], x[2:]):
  ...     _, collected = layer.apply(variables, part, mutable=["batch_moments"])
  ...     variables |= collected
  >>> stats = move_batch_stats(variables["batch_stats"], variables["batch_moments"])
  >>> bool(jnp.allclose(stats["mean"], x.mean(0), atol=1e-6))
  True
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxbn import stats_tree
from jaxbn.core import moments as moments_lib
from jaxbn.core import passes

NAME = "batch_moments"


def move_batch_stats(batch_stats: Any, batch_moments: Any) -> Any:
    """The running statistics after one update by the moments of all passes.

    Every layer moves as it does in training, by its own momentum and `statistics`.
    Layers that collected nothing keep what they have.

    Args:
      batch_stats: the collection before the passes.
      batch_moments: the collection that they filled.

    Returns:
      `batch_stats`, same structure, shapes and dtypes.
    """
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    if _is_of_a_layer(batch_moments):
        moved = {**batch_stats, **batch_moments["moved"]}
    else:
        moved = {
            name: move_batch_stats(stats, batch_moments[name])
            if name in batch_moments
            else stats
            for name, stats in batch_stats.items()
        }
    kind: Any = type(batch_stats)  # dict or FrozenDict
    return kind(moved)


def check_all_collected(before: Any, after: Any, batch_moments: Any) -> None:
    """Checks that no layer moved its statistics instead of collecting moments.

    Under `jit` values cannot be compared; a leaf that was not written is the same
    object.

    Args:
      before: the collection `batch_stats` that a model was given.
      after: the one that it wrote.
      batch_moments: what it collected.

    Raises:
      ValueError: with the paths of the layers that did.
    """
    old, new = stats_tree.pairs(before), stats_tree.pairs(after)
    moved = {
        path for path in new if path in old and new[path].mean is not old[path].mean
    }
    hidden = sorted("/".join(path) for path in moved - set(moments_of(batch_moments)))
    if hidden:
        raise ValueError(
            f"The moments of {hidden} could not be collected. Layers must be those of "
            "jaxbn, and `nn.scan` and `nn.vmap` must be given the collection: "
            "`variable_axes={..., 'batch_moments': 0}`."
        )


def moments_of(batch_moments: Any) -> dict[tuple[str, ...], moments_lib.Moments]:
    """The moments of every layer, by its path.

    Example:
      >>> moments_of({"bn": {"moments": (1, 2, 3, 4), "moved": {}}})
      {('bn',): Moments(count=1, mean=2, var=3, tail=4)}
    """
    found: dict[tuple[str, ...], moments_lib.Moments] = {}

    def visit(path: tuple[str, ...], tree: Any) -> None:
        if _is_of_a_layer(tree):
            found[path] = moments_lib.Moments(*tree["moments"])
        elif isinstance(tree, Mapping):
            for name, part in tree.items():
                visit((*path, name), part)

    visit((), batch_moments)
    return found


def _is_of_a_layer(tree: Any) -> bool:
    return isinstance(tree, Mapping) and {"moments", "moved"} <= set(tree)


def as_variables(collected: passes.Passes) -> dict[str, Any]:
    """What a layer keeps of its passes in the collection, as plain containers."""
    return {
        "moments": tuple(collected.moments),
        "moved": collected.moved._asdict(),
    }


def zeros_like(batch_moments: Any) -> Any:
    """The collection before the first pass, from its shapes.

    Args:
      batch_moments: arrays, or what `jax.eval_shape` says of them.
    """
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch_moments)
