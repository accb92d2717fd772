"""Runs each compilation in a process of its own, and keeps the rows in a JSON file."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from experiments.compilers import cases, targets
from experiments.framework import output

Row = dict[str, Any]
# The compiler tries a program that is far too large again and again.
SECONDS = 1800
# Signals of a crash of the compiler. The same program would crash it again.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
# A process of its own makes each row, so each row has the versions of its compiler.
ABOUT = {
    "study": "accelerators",
    "command": (
        "python -m experiments.library.accelerators.worker --target ... --program ..."
    ),
    "device": "no device: compiled, not run; the options are the fields of a row",
}
_FIELDS = [field.name for field in dataclasses.fields(cases.Case)]


def compile_case(case: cases.Case, old: Row | None = None) -> Row:
    """Returns the row of a case: its measures, or an `error` with the reason.

    Args:
      case: the case to compile.
      old: its earlier row, which is returned if the program is unchanged.

    Raises:
      KeyboardInterrupt: if the process was interrupted.
    """
    command = [sys.executable, "-m", "experiments.library.accelerators.worker"]
    for name, value in dataclasses.asdict(case).items():
        command += [f"--{name}", str(value)]
    if old and "fingerprint" in old:
        command += ["--known", old["fingerprint"]]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return _row(case) | {"error": f"not compiled after {SECONDS // 60} minutes"}
    if done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    said: Row = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            said |= json.loads(line)
    if old and said.pop("unchanged", False):
        return old
    if done.returncode:
        said["error"] = _ending(done)
        if -done.returncode not in _CRASHES:
            # This machine may be the cause. Without a fingerprint a case is compiled
            # again.
            said.pop("fingerprint", None)
    return _row(case) | said


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
        row = compile_case(case, old)
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


def _row(case: cases.Case) -> Row:
    compiler = targets.compiler_version(case.platform)
    return dataclasses.asdict(case) | {
        "jax": targets.jax_version(),
        "compiler": compiler,
    }


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the compiler's process was ended by {name}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return (lines or [f"the worker ended with status {done.returncode}"])[-1][:200]
