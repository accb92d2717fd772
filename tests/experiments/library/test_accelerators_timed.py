"""Tests the times of training steps on the GPU of this machine."""

import json

import chex
import jax
import pytest

from experiments.compilers import cases
from experiments.library.accelerators import report_timed, study, timed, timed_worker


def row(norm, ms, **changed):
    made = {"setting": "command buffers", "program": "layer", "dtype": "bfloat16",
            "images": 64, "norm": norm, "ms": ms, "over_flax": [ms / 4, ms / 5, ms / 2],
            "traffic_MB": 100 * ms, "copy_GBps": 200, "conditionals": 0,
            "temporary_MB": 7.0}  # fmt: skip
    return made | changed


def test_the_table_has_prediction_beside_time():
    rows = [
        row("flax", 4.0),
        row("jaxbn", 3.0),
        row("torch", 2.0, traffic_MB=None, conditionals=None, temporary_MB=None),
        row("haiku", 0.0, error="ImportError: none"),
    ]
    result = {"rounds": 5, "rows": rows}
    lines = report_timed.table(result).splitlines()
    assert "5 rounds" in lines[0]
    # 300 MB take 1.5 ms at 200 GB/s: half of 3 ms.
    assert "| jaxbn | 3.000 | 0.75 (0.60 to 1.50) | 0.75 | 0.50 | 0 | 7 |" in lines
    assert "| torch | 2.000 | 0.50 (0.40 to 1.00) |  |  |  |  |" in lines
    assert "| haiku | ImportError: none |  |  |  |  |  |" in lines


@pytest.mark.parametrize("before", [[], [{"device": "GPU"}, row("flax", 4.0)]])
def test_the_study_keeps_what_a_worker_said_before_it_ended(
    before, tmp_path, monkeypatch
):
    class Done:
        returncode = 1
        stdout = "".join(json.dumps(said) + "\n" for said in before) + "noise\n"

    flags = []

    def end(command, env, **_):
        flags.append(env["XLA_FLAGS"])
        return Done

    monkeypatch.setattr(timed.subprocess, "run", end)
    study.Accelerators(device=True, quick=True, out=tmp_path).run()
    assert "command_buffer" not in flags[0]
    assert flags[1].endswith("--xla_gpu_enable_command_buffer=")
    rows = json.loads((tmp_path / "device.json").read_text())["rows"]
    names = ["flax", ""] if before else [""]
    assert [each["norm"] for each in rows] == 2 * names
    assert "status 1" in rows[-1]["error"]
    said = json.loads((tmp_path / "device.json").read_text())["device"]
    assert said == ("GPU" if before else "no device")
    assert f"`, {said}, flax" in (tmp_path / "device.md").read_text()


@pytest.mark.exhaustive
def test_a_program_runs_and_says_what_it_moves(tiny):
    one = timed_worker.runnable(
        cases.Case(program="short_resnet", dtype="float32", images=2)
    )
    assert one.traffic_MB is not None
    assert one.traffic_MB > 0
    chex.assert_trees_all_equal(one.run(), one.run())  # It uses up no argument.


def test_arrays_of_one_shape_differ(tiny):
    """With equal arrays the cotangent of the layer would be its input."""
    leaf = jax.ShapeDtypeStruct((4,), "float32")
    assert (timed_worker._random(0, leaf) != timed_worker._random(1, leaf)).any()


@pytest.mark.exhaustive
def test_a_group_is_timed_side_by_side(tiny, monkeypatch):
    few = {"layer": ("none", "flax", "jaxbn", "jaxbn, shifted")}
    monkeypatch.setattr(timed_worker, "NORMS", few)
    rows = list(timed_worker.time_group("layer", "float32", 2, rounds=2))
    by_norm = {each["norm"]: each for each in rows}
    assert {"flax", "jaxbn", "jaxbn, shifted", "none"} <= set(by_norm)
    assert by_norm["flax"]["over_flax"].median == 1
    assert all(each["ms"] > 0 for each in rows if "error" not in each)


def test_what_cannot_run_is_a_row_that_says_why(tiny, monkeypatch):
    def refuse(*_):
        raise ImportError("no such package")

    def runnable(case):
        if case.norm == "flax":
            raise RuntimeError("RESOURCE_EXHAUSTED: no memory")
        return timed_worker.Runnable(lambda: None)

    monkeypatch.setattr(timed_worker, "_torch", refuse)
    monkeypatch.setattr(timed_worker, "runnable", runnable)
    rows = list(timed_worker.time_group("layer", "float32", 2, rounds=2))
    assert [each["norm"] for each in rows if "error" in each] == ["flax", "torch"]
    assert rows[1]["error"] == "ImportError: no such package"
    assert not any("over_flax" in each for each in rows)


def test_a_full_run_needs_a_gpu():
    with pytest.raises(SystemExit, match="A GPU is needed, JAX found cpu"):
        timed_worker.Worker(groups=("resnet50",)).run()
