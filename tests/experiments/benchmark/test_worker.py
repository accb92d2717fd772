import json

import pytest

from experiments import output
from experiments.benchmark import layers as benchmark_layers
from experiments.benchmark import report, worker


@pytest.mark.exhaustive
def test_a_worker_measures_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_layers, "QUICK_SHAPES", ((6, 4),))
    out = tmp_path / "part.json"
    worker.Worker(part="float32", rounds=2, quick=True, out=out).run()
    made = json.loads(out.read_text())
    assert made["device"]
    (row,) = made["layers"]["float32"]
    assert row["shape"] == [6, 4]
    result = {"rounds": 2, "parts": ["float32"]} | made
    output.write_json(tmp_path / "benchmark.json", result | {"command": "a command"})
    text = report.write(tmp_path / "benchmark.json")
    assert "| Forward and backward | float32 |" in text
    assert (tmp_path / "benchmark_layers.png").exists()
    assert not (tmp_path / "benchmark_memory.png").exists()  # Not measured.
