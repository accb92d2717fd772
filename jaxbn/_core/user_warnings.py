"""Warnings at the user's line of code, and checks of what traces a call."""

import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

# A warning names no line of these packages.
_LIBRARIES = ("jaxbn", "flax", "jax", "contextlib", "functools")
_LOOPS = ("scan", "while_loop", "fori_loop")
# Transformations of Flax in which no variable can be created.
_BRANCHES = ("cond", "switch", "while_loop")


def warn(message: str) -> None:
    """Warns at the line at which the user calls the model, or the function.

    Python shows equal warnings of one line once. Many layers of a model therefore give
    one warning, if their messages are equal.
    """
    frame = _call_of_model(list(_frames()))
    warnings.warn_explicit(
        message,
        UserWarning,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__") or "<string>",
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def single_value() -> None:
    """Warns that the batch has one value per channel, which has no variance.

    The message does not name the layer, so that a model warns once.
    """
    warn(
        "`BatchNorm` got one value per channel, which has no variance: its output is "
        "the bias and its running statistics stay as they are. Drop the last batch, "
        "merge it with another, or use the running average; `jaxbn.diagnose` counts "
        "the values of each layer."
    )


def is_in_loop() -> bool:
    """Returns whether a loop of JAX traces this call as its body.

    Loops of Flax do not count, because they can stack variables and need not carry
    them.
    """
    inside = False
    for frame in _frames():
        package = _package(frame)
        if package == "jax":
            inside |= frame.f_code.co_name in _LOOPS
        elif inside and package == "flax":
            inside = False
        elif inside:
            return True
    return False


def is_in_branch_of_flax() -> bool:
    """Returns whether `nn.cond`, `nn.switch` or `nn.while_loop` traces this call."""
    return any(
        _package(frame) == "flax" and frame.f_code.co_name in _BRANCHES
        for frame in _frames()
    )


def _frames() -> Iterator[FrameType]:
    """Yields the frames of all callers, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _call_of_model(frames: list[FrameType]) -> FrameType:
    """Returns the frame of the user that calls the outermost module.

    Without a module it is the first frame that belongs to no library.
    """
    modules = [
        place
        for place, frame in enumerate(frames)
        if _is_module(frame.f_locals.get("self"))
    ]
    outside = frames[modules[-1] + 1 :] if modules else frames
    for frame in outside:
        if _package(frame) not in _LIBRARIES:
            return frame
    return frames[-1]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _is_module(value: Any) -> bool:
    """Returns whether a value is a module of Flax, without importing Flax."""
    return any(
        kind.__name__ == "Module" and kind.__module__.partition(".")[0] == "flax"
        for kind in type(value).__mro__
    )
