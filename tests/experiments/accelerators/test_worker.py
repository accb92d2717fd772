import dataclasses
import pathlib
import subprocess
import sys

from experiments.accelerators import (
    process,
    worker,
)
from experiments.programs import cases
from tests.experiments.accelerators.rows import fake_worker


def test_worker_takes_the_options_of_a_case(monkeypatch):
    seen = []
    monkeypatch.setattr(process.subprocess, "run", fake_worker(seen, {"cycles": 1}))
    case = cases.Case(norm="jaxbn, in_place", activation="leaky_relu", images=3)
    process.compile_case(case, {"fingerprint": "abc"})
    made = worker.parse(seen[0][3:])
    fields = [field.name for field in dataclasses.fields(case)]
    assert all(getattr(made, name) == getattr(case, name) for name in fields)
    assert made.known == "abc"


def test_parent_and_worker_leave_the_environment_to_the_worker():
    # jax reads the environment when it is imported: the worker sets it before.
    code = "import experiments.accelerators.worker, sys; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[3],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
