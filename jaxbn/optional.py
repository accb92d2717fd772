"""Packages that only some functions need, and that are not installed with jaxbn."""

import importlib
from typing import Any


def imported(name: str, purpose: str) -> Any:
    """A module, imported now.

    Args:
      name: of the module, perhaps with dots.
      purpose: what needs it, for the message.

    Raises:
      ModuleNotFoundError: if it is not installed, with the command that installs it.

    Example:
      >>> imported("json", "Reading").loads("[1]")
      [1]
    """
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:  # It is there, and lacks something itself.
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed: "
            f"`pip install {package}`.",
            name=package,
        ) from error
