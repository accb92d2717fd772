"""Keeps the rows of the study in a JSON file, written after every compilation."""

import dataclasses
import json
import pathlib
import threading
from collections.abc import Callable
from typing import Any

from experiments import output
from experiments.accelerators import process
from experiments.programs import cases

# A process of its own makes each row, so each row has the versions of its compiler.
ABOUT = {
    "study": "accelerators",
    "command": "python -m experiments.accelerators.worker --target ... --program ...",
    "device": "no device: compiled, not run; the options are the fields of a row",
}
_FIELDS = [field.name for field in dataclasses.fields(cases.Case)]


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns a key that is equal for rows of one case and that sorts the rows."""
    return tuple(f"{row[name]:>6}" for name in _FIELDS)


class Results:
    """The content of the file at `path`; empty if there is no such file."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.content: dict[str, Any] = {"rows": []}
        if path.exists():
            self.content |= json.loads(path.read_text())
        self.content |= ABOUT
        self._rows = {key(row): row for row in self.content["rows"]}
        self._lock = threading.Lock()

    def compile(self, case: cases.Case) -> dict[str, Any]:
        """Returns the row of a case; compiles it unless the file has that program."""
        place = key(dataclasses.asdict(case))
        old = self._rows.get(place)
        row = process.compile_case(case, old)
        if row is not old:
            with self._lock:  # Several compilations may end at once.
                self._rows[place] = row
                self.write()
        return row

    def forget(self, which: Callable[[dict[str, Any]], bool]) -> None:
        """Removes the rows for which `which` returns True."""
        self._rows = {k: row for k, row in self._rows.items() if not which(row)}

    def write(self) -> None:
        """Writes the file atomically."""
        self.content["rows"] = [self._rows[place] for place in sorted(self._rows)]
        output.write_json(self.path, self.content)
