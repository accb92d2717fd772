"""Runs a compilation in a process of its own, and reads its output or its failure."""

import dataclasses
import json
import signal
import subprocess
import sys
from typing import Any

from experiments.programs import cases, targets

Row = dict[str, Any]
# The compiler tries a program that is far too large again and again.
SECONDS = 1800

# Signals of a crash of the compiler. The same program would crash it again.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


def compile_case(case: cases.Case, old: Row | None = None) -> Row:
    """Returns the row of a case: its measures, or an `error` with the reason.

    Args:
      case: the case to compile.
      old: its earlier row, which is returned if the program is unchanged.

    Raises:
      KeyboardInterrupt: if the process was interrupted.
    """
    command = [sys.executable, "-m", "experiments.accelerators.worker"]
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
            # This machine may be the cause. Without a fingerprint it is tried again.
            said.pop("fingerprint", None)
    return _row(case) | said


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
