"""Progress of a study on disk, so that a killed run goes on where it was."""

import contextlib
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_OPTIONS = ocp.CheckpointManagerOptions(
    max_to_keep=2,
    cleanup_tmp_directories=True,  # Half-written when a run was killed.
    enable_async_checkpointing=False,
)


class Checkpoints:
    """The last two checkpoints of one run, written atomically by orbax.

    Where several processes run together, all call every method at the same step.

    Args:
      directory: of this run alone; made if there is none.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory.resolve()
        self._manager = ocp.CheckpointManager(self._directory, options=_OPTIONS)

    def save(self, step: int, tree: Any) -> None:
        """Writes a checkpoint; of the older ones, one is kept."""
        args = ocp.args.StandardSave(_without_keys(tree))
        with _undisturbed():
            if step in self._manager.all_steps():  # It could not be read.
                self._manager.delete(step)
            # Forced: a later one that could not be read may be in the way.
            self._manager.save(step, args=args, force=True)

    def restore(self, template: Any) -> Any | None:
        """The newest checkpoint that can be read into `template`, or None.

        Says which it ignores; they stay until the run comes to their step.
        """
        args = ocp.args.StandardRestore(_without_keys(template))
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(step, args=args)
            except Exception as error:  # Whatever a damaged file makes orbax raise.
                print(f"Ignored an unreadable checkpoint: {step} ({error}).")
            else:
                return _with_keys(restored, template)
        return None

    def clear(self) -> None:
        """Removes everything."""
        self._manager.close()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the end: orbax could lose it, or leave threads that complain."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread hears it.
        return
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *heard: pressed.append(heard))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed and callable(before):
        before(*pressed[0])


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
            jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))
            if _is_key(like)
            else np.asarray(leaf)
        ),
        tree,
        template,
    )
