import json

import pytest

from experiments.benchmark import study, worker
from experiments.measuring import peers

TIME = {"jaxbn_ms": 1.0, "over_jaxbn": {"flax.linen": [1.5, 1.4, 1.6]}}

ROW = {"shape": [6, 4], "missing": {}, **dict.fromkeys(peers.Programs._fields, TIME)}

MEASURED = {
    "float32": {"layers": {"float32": [ROW]}},
    "bfloat16": {"layers": {"bfloat16": [ROW]}},
    "traffic": {"traffic": {"float32": {}}, "kept": {"float32": {"jaxbn": 1.0}}},
}


def test_results_are_written_as_parts_end(tmp_path, monkeypatch):
    def measure(self, part):
        if part == "traffic":
            raise KeyboardInterrupt
        return {"device": "a GPU", **MEASURED[part]}

    monkeypatch.setattr(study.Benchmark, "_measure", measure)
    with pytest.raises(SystemExit, match="what was done: float32, bfloat16"):
        study.Benchmark(rounds=2, quick=True, out=tmp_path).run()
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert result["parts"] == ["float32", "bfloat16"]
    assert result["device"] == "a GPU"
    assert result["layers"] == {"float32": [ROW], "bfloat16": [ROW]}
    assert "| bfloat16 | 1.50 |" in (tmp_path / "benchmark.md").read_text()


def test_parts_of_study_and_worker_are_the_same():
    assert set(study.PARTS) == set(worker.PARTS)
    assert set(study._QUICK) < set(study.PARTS)
