"""Compiles one case in a process of its own.

    python -m experiments.library.accelerators.worker --platform tpu --target v5e:2x2 \
        --program small_network --norm jaxbn --dtype bfloat16 --hlo small.hlo

The last line of its output is JSON. It has the measures of the program, or the reason
why there is none. `python -m experiments.library.accelerators.worker --help` lists the
options.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import traceback

import tyro

from experiments.compilers import cases, targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker(cases.Case):
    """Compile one program for a described accelerator."""

    known: str = ""
    """The fingerprint of a program that need not be compiled again."""
    hlo: pathlib.Path | None = None
    """The file for the optimised program."""
    stablehlo: pathlib.Path | None = None
    """The file for the program before optimisation."""

    def run(self) -> None:
        """Prints a line when the program is lowered, and one when it is compiled."""
        os.environ.update(targets.ENVIRONMENT[self.platform])
        # These imports come late, because importing jax reads the environment.
        from experiments.compilers import steps
        from experiments.library.accelerators import measures

        try:
            lowered = steps.lower(self)
        except Exception as error:
            # The row has only one line of the error; this prints all of it.
            traceback.print_exc()
            return _print(
                {"error": measures.reason(f"{type(error).__name__}: {error}")}
            )
        if self.stablehlo:
            self.stablehlo.write_text(lowered.as_text(debug_info=True))
        fingerprint = measures.fingerprint(self, lowered)
        _print({"fingerprint": fingerprint})
        if fingerprint == self.known:
            return _print({"unchanged": True})
        try:
            compiled, seconds = measures.compile_timed(lowered)
        except RuntimeError as error:
            return _print({"error": measures.reason(str(error))})
        if self.hlo:
            self.hlo.write_text(compiled.as_text())
        _print(measures.read(self, lowered, compiled) | {"compile_s": seconds})


def _print(row) -> None:
    print(json.dumps(row), flush=True)


def parse(arguments: list[str]) -> Worker:
    """Returns the case that the command line names."""
    return tyro.cli(Worker, args=arguments)


if __name__ == "__main__":
    # Python could not handle the signal while a compiler runs.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    worker = parse(sys.argv[1:])
    if why := targets.missing(worker.platform):
        sys.exit(why)
    worker.run()
