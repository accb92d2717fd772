"""Import of packages that only some functions need, and jaxbn does not install."""

import importlib
from typing import Any


def imported(name: str, purpose: str) -> Any:
    """Imports a module and returns it.

    Args:
      name: the name of the module, perhaps with dots.
      purpose: the feature that needs it, for the message.

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
        if error.name != package:  # The package is there, but lacks a module.
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs {package}, which is not installed: "
            f"`pip install {package}`.",
            name=package,
        ) from error
