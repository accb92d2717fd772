"""Runs a program in two processes on this machine, joined by gloo."""

import socket
import subprocess
import sys

import jax

PROCESSES = 2
DEVICES = 2  # The devices of each process.


def start(module: str, *options: str) -> list[subprocess.Popen[str]]:
    """Runs `python -m module PROCESS PORT *options` for processes 0 and 1.

    Output and errors of a process come through one pipe.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, str(process), port, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(PROCESSES)
    ]


def finish(module: str, *options: str, seconds: int = 300) -> list[str]:
    """Runs both processes to their end and returns what each printed.

    Args:
      module: the module, as in `start`.
      *options: the options, as in `start`.
      seconds: the time that a process may take.

    Raises:
      RuntimeError: if a process failed; the message has what it printed.
    """
    outputs = []
    for process in start(module, *options):
        printed, _ = process.communicate(timeout=seconds)
        if process.returncode:
            raise RuntimeError(f"A process of {module} failed:\n{printed}")
        outputs.append(printed)
    return outputs


def join(process: int, port: int, devices: int = DEVICES) -> None:
    """Connects this process to the other. Both call it before they use a device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"localhost:{port}", PROCESSES, process, heartbeat_timeout_seconds=10
    )
