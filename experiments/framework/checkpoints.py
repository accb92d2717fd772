"""Keeps the progress of a study on disk, so that a killed run can be resumed."""

import contextlib
import hashlib
import json
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_OPTIONS = ocp.CheckpointManagerOptions(
    max_to_keep=2,
    cleanup_tmp_directories=True,  # A killed run may leave half-written ones.
    enable_async_checkpointing=False,
)


class Checkpoints:
    """The last two checkpoints of one run, written atomically by orbax.

    If several processes run together, all call every method at the same step.

    Args:
      directory: a directory for this run alone; it is created if it does not exist.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory.resolve()
        self._manager = ocp.CheckpointManager(self._directory, options=_OPTIONS)

    def save(self, step: int, tree: Any) -> None:
        """Writes a checkpoint and keeps one older one."""
        args = ocp.args.StandardSave(_without_keys(tree))
        with _undisturbed():
            # If there is a checkpoint of this step, it could not be read.
            if step in self._manager.all_steps():
                self._manager.delete(step)
            # `force` writes even if there is a later one that could not be read.
            self._manager.save(step, args=args, force=True)

    def restore(self, template: Any) -> Any | None:
        """Returns the newest checkpoint that can be read into `template`, or None.

        It prints a line for each unreadable checkpoint. These stay on disk until the
        run reaches their step.
        """
        args = ocp.args.StandardRestore(_without_keys(template))
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(step, args=args)
            except Exception as error:  # orbax raises many kinds of errors.
                print(f"Ignored an unreadable checkpoint: {step} ({error}).")
            else:
                return _with_keys(restored, template)
        return None

    def clear(self) -> None:
        """Removes all checkpoints of the run."""
        self._manager.close()
        shutil.rmtree(self._directory, ignore_errors=True)


class Folder(NamedTuple):
    """The folder with the checkpoints of all runs of a study."""

    path: pathlib.Path

    @classmethod
    def of_study(cls, out: pathlib.Path, name: str, identity: Any) -> "Folder":
        """Returns the folder for one set of options.

        Args:
          out: the folder of the results.
          name: the name of the study.
          identity: the options that decide the numbers, in the form of JSON.
        """
        return cls(out / "checkpoints" / f"{name}_{_digest(identity)}")

    def of(self, name: str) -> Checkpoints:
        """Returns the checkpoints of the run with the given name."""
        return Checkpoints(self.path / _digest(name))

    def clear(self) -> None:
        """Removes the checkpoints of all runs."""
        shutil.rmtree(self.path, ignore_errors=True)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Delays Ctrl-C to the end of the block.

    Otherwise orbax could lose the signal, or leave threads that print errors.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread receives the signal.
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
    """Replaces PRNG keys by their integers, which orbax can write."""
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
