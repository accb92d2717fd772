"""Finds all commands by parsing files, and imports the one that is run.

A command is a class with a literal `name`. The command of a study is in the `study.py`
of its folder. The other commands are in shared folders, such as `data`.
"""

import ast
import importlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


class Command(NamedTuple):
    """A command that was found, and is not imported yet."""

    name: str
    summary: str  # The first line of its docstring.
    former_names: dict[str, list[str]]  # Earlier names, and options they stand for.
    module: str
    cls: str
    is_study: bool

    def load(self) -> Any:
        """Imports the class of the command."""
        return getattr(importlib.import_module(self.module), self.cls)


def commands() -> dict[str, Command]:
    """Returns all commands by name."""
    folder = ROOT / "experiments"
    paths = [*folder.glob("*/*.py"), *folder.glob("*/*/study.py")]
    found = [command for path in paths for command in _commands(path)]
    return {command.name: command for command in sorted(found)}


def studies() -> dict[str, Command]:
    """Returns all studies by name."""
    return {name: found for name, found in commands().items() if found.is_study}


def find(name: str) -> tuple[Command, list[str]] | None:
    """Returns a command and the options its name stands for; None if there is none.

    Args:
      name: a current name, or a former one.
    """
    known = commands()
    if name in known:
        return known[name], []
    for command in known.values():
        if name in command.former_names:
            return command, list(command.former_names[name])
    return None


def _commands(path: pathlib.Path) -> Iterator[Command]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        constants = dict(_constants(node))
        if isinstance(constants.get("name"), ast.Constant):
            former = constants.get("former_names")
            yield Command(
                constants["name"].value,
                (ast.get_docstring(node) or "").split("\n")[0],
                ast.literal_eval(former) if former else {},
                module,
                node.name,
                path.name == "study.py",
            )


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Yields the names and values that are assigned in the body of a class."""
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, statement.value
        elif (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value
        ):
            yield statement.target.id, statement.value
