import pytest

from experiments.device import programs, worker


@pytest.mark.exhaustive
def test_a_group_is_timed_side_by_side(tiny, monkeypatch):
    few = {"layer": ("none", "flax", "jaxbn", "jaxbn, shifted")}
    monkeypatch.setattr(worker, "NORMS", few)
    rows = list(worker.time_group("layer", "float32", 2, rounds=2))
    by_norm = {each["norm"]: each for each in rows}
    assert {"flax", "jaxbn", "jaxbn, shifted", "none"} <= set(by_norm)
    assert by_norm["flax"]["over_flax"].median == 1
    assert all(each["ms"] > 0 for each in rows if "error" not in each)


def test_what_cannot_run_is_a_row_that_says_why(tiny, monkeypatch):
    def refuse(*_):
        raise ImportError("no such package")

    def make(case):
        if case.norm == "flax":
            raise RuntimeError("RESOURCE_EXHAUSTED: no memory")
        return programs.Runnable(lambda: None)

    monkeypatch.setattr(worker, "_torch", refuse)
    monkeypatch.setattr(programs, "make", make)
    rows = list(worker.time_group("layer", "float32", 2, rounds=2))
    assert [each["norm"] for each in rows if "error" in each] == ["flax", "torch"]
    assert rows[1]["error"] == "ImportError: no such package"
    assert not any("over_flax" in each for each in rows)


def test_a_full_run_needs_a_gpu():
    with pytest.raises(SystemExit, match="A GPU is needed, JAX found cpu"):
        worker.Worker(groups=("resnet50",)).run()
