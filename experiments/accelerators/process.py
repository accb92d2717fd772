"""One compilation in a process of its own: what it says, or how it ended."""

import dataclasses
import json
import signal
import subprocess
import sys
from typing import Any

from experiments.programs import cases, targets

Row = dict[str, Any]
SECONDS = 1800  # A program that is far too large is tried again and again.

# Of the compiler's own doing: the same program would end so again.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


def compile_case(case: cases.Case, old: Row | None = None) -> Row:
    """The row of a case: what was read, or an `error` that says why there is none.

    Args:
      case: what to compile.
      old: its row of before, which is returned if the program is still the same.

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
            said.pop("fingerprint", None)  # Perhaps of this machine: not kept.
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
