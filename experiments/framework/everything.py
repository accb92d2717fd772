"""Runs every study at its small setting, one after another, in its own process."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from experiments.framework import discovery, output

Commands = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Everything:
    """Runs every study at its small setting, on embedded data (20 minutes)."""

    name = "all"

    out: pathlib.Path = pathlib.Path("runs/all")
    """The folder with a folder for each study. Studies that succeeded there are not run
    again."""

    def run(self) -> None:
        """Runs the studies that are not done, and writes `all.json` after each.

        Raises:
          SystemExit: if studies failed; the message names them.
        """
        output.check_folder(self.out)
        try:
            failed = run(commands(self.out), self.out)
        except KeyboardInterrupt:
            sys.exit("Stopped. Run the same command again to resume.")
        if failed:
            sys.exit(f"Failed: {', '.join(failed)}.")


def commands(out: pathlib.Path) -> dict[str, list[str]]:
    """Returns for each study the command that runs it at its small setting."""
    start = (sys.executable, "-m", "experiments")
    return {
        name: [*start, name, "--out", str(out / name), "--quick"]
        for name in discovery.studies()
    }


def run(todo: Commands, out: pathlib.Path) -> list[str]:
    """Runs commands one after another, and prints a line for each.

    Args:
      todo: the commands by name of the study; the output of a command goes to
        `<name>.log`.
      out: the folder of the logs and of `all.json`. That file has the minutes of each
        command that succeeded; these commands are not run again.

    Returns:
      The names of the commands that failed.
    """
    path = out / "all.json"
    minutes: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    failed = []
    for place, (name, command) in enumerate(todo.items(), 1):
        print(f"{place:2} of {len(todo)}  {name:22}", end="", flush=True)
        if name in minutes:
            print("done before")
            continue
        start = time.monotonic()
        error = _error(command, out / f"{name}.log")
        took = (time.monotonic() - start) / 60
        print(f"{took:5.1f} minutes  {error or 'ok'}", flush=True)
        if error:
            failed.append(name)
        else:
            minutes[name] = round(took, 2)
            output.write_json(path, minutes)
    print(f"{sum(minutes.values()):.0f} minutes in all; results are in {out}.")
    return failed


def _error(command: Sequence[str], log: pathlib.Path) -> str | None:
    """Runs a command; returns its last line of output if it failed, or else None."""
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=file, check=False)
    if not done.returncode:
        return None
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    why = lines[-1] if lines else f"status {done.returncode}"
    return f"failed: {why} (see {log})"
