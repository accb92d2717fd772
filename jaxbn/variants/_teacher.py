"""A teacher: the moving average of a whole model, parameters and statistics."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxbn._core import arguments, reduction

Tree = TypeVar("Tree")


def update_teacher(
    teacher: Tree, student: Tree, momentum: jax.typing.ArrayLike = 0.99
) -> Tree:
    """Returns a teacher's variables after one step of the moving average.

    Parameters and running statistics are averaged alike, so that the teacher's
    statistics fit its weights. Run the teacher in evaluation mode. Integers, booleans
    and random keys, such as step counts, are those of the student.

    Args:
      teacher: variables of a Linen model or the state of an NNX model. Half precision
        is averaged in float32, but a step smaller than its rounding is lost.
      student: a tree of the same structure and shapes.
      momentum: weight of the OLD values of the teacher, in [0, 1].

    Returns:
      A tree of the same structure, shapes and dtypes as `teacher`.

    Raises:
      ValueError: if the trees differ, or if `momentum` is outside [0, 1].

    Example:
      >>> teacher = {"kernel": jnp.zeros(2), "steps": jnp.array(3)}
      >>> student = {"kernel": jnp.ones(2), "steps": jnp.array(4)}
      >>> new = update_teacher(teacher, student, 0.75)
      >>> new["kernel"], int(new["steps"])
      (Array([0.25, 0.25], dtype=float32), 4)

    References:
      Cai et al., Exponential Moving Average Normalization for Self-supervised and
      Semi-supervised Learning, arXiv:2101.08482, Equations 6 to 8.
    """
    arguments.check_momentum(momentum)

    def average(old: Any, new: Any) -> Any:
        old, new = jnp.asarray(old), jnp.asarray(new)
        if old.shape != new.shape:
            raise ValueError(
                "`teacher` and `student` must have the same shapes, got "
                f"{old.shape} and {new.shape}."
            )
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new
        wide = reduction.reduction_dtype(old.dtype)
        step = (1 - momentum) * (new.astype(wide) - old.astype(wide))
        return (old + step).astype(old.dtype)

    return jax.tree.map(average, teacher, student)
