"""Progress of a study on disk, so that a killed run goes on where it was."""

import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp


class Checkpoints:
    """The last checkpoints of one run, written atomically by orbax.

    Where several processes run together, all call every method at the same step.

    Args:
      directory: of this run alone; made on the first save.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory.resolve()
        self._checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def save(self, step: int, tree: Any) -> None:
        """Writes a checkpoint, then removes the older ones but one."""
        path = self._directory / str(step)
        # Forced: an unreadable one may be in the way.
        self._checkpointer.save(path, _without_keys(tree), force=True)
        if jax.process_index() == 0:
            for old in self._steps()[:-2]:
                shutil.rmtree(self._directory / str(old))

    def restore(self, template: Any) -> Any | None:
        """The newest checkpoint that can be read, or None; says what it ignores."""
        if not self._directory.is_dir():
            return None
        for path in self._directory.iterdir():
            if not path.name.isdigit():
                print(f"Ignored a half-written checkpoint: {path.name}.")
        plain = _without_keys(template)
        for step in reversed(self._steps()):
            path = self._directory / str(step)
            try:
                restored = self._checkpointer.restore(
                    path, args=ocp.args.StandardRestore(plain)
                )
            except Exception as error:  # Whatever a damaged file makes orbax raise.
                print(f"Ignored an unreadable checkpoint: {path.name} ({error}).")
                continue
            return _with_keys(restored, template)
        return None

    def clear(self) -> None:
        """Removes everything."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _steps(self) -> list[int]:
        names = (path.name for path in self._directory.iterdir())
        return sorted(int(name) for name in names if name.isdigit())


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Any) -> Any:
    """PRNG keys as the integers they are made of, which orbax can write."""
    return jax.tree.map(
        lambda leaf: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf),
        tree,
    )


def _with_keys(tree: Any, template: Any) -> Any:
    return jax.tree.map(
        lambda leaf, like: (
            jax.random.wrap_key_data(leaf) if _is_key(like) else np.asarray(leaf)
        ),
        tree,
        template,
    )
