import signal
import subprocess

import pytest

from experiments.accelerators import (
    process,
    report,
)
from tests.experiments.accelerators.rows import CASE, fake_worker


@pytest.mark.parametrize(
    ("said", "ending", "error", "kept"),
    [
        ({"error": "RESOURCE_EXHAUSTED: 29.96G"}, {}, "RESOURCE_EXHAUSTED", True),
        ({}, {"returncode": -signal.SIGSEGV}, "ended by SIGSEGV", True),
        ({}, {"returncode": -signal.SIGKILL}, "ended by SIGKILL", False),
        ({}, {"returncode": 1, "stderr": "Traceback\nValueError: no"}, "no", False),
    ],
)
def test_failures_are_rows(said, ending, error, kept, monkeypatch):
    worker = fake_worker([], {"fingerprint": "abc"}, said, **ending)
    monkeypatch.setattr(process.subprocess, "run", worker)
    row = process.compile_case(CASE)
    assert error in row["error"]
    assert ("fingerprint" in row) == kept
    assert row["norm"] == "jaxbn"
    assert error in report.line(row)


def test_an_interrupted_worker_gives_no_row(monkeypatch):
    ended = fake_worker([], {"fingerprint": "abc"}, returncode=-signal.SIGINT)
    monkeypatch.setattr(process.subprocess, "run", ended)
    with pytest.raises(KeyboardInterrupt):
        process.compile_case(CASE)


def test_a_compilation_that_does_not_end(monkeypatch):
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(process.subprocess, "run", run)
    assert "not compiled after 30 minutes" in process.compile_case(CASE)["error"]
