import json

from experiments.figure1 import study as figure1
from experiments.figure1 import sweep as figure1_sweep
from experiments.networks import mlp


def test_sweep_rows_are_not_made_twice(tmp_path, monkeypatch):
    made = []

    def make_row(config, change):
        made.append(change)
        return {
            "change": change,
            "config": figure1.identity(config),
            "accuracy": {n: [0.9] * 11 for n in mlp.NETWORKS},
            "distance_to_paper": dict.fromkeys(mlp.NETWORKS, 0.01),
            "with_bn_above": True,
        }

    monkeypatch.setattr(figure1_sweep, "make_row", make_row)
    for _ in range(2):
        figure1_sweep.Figure1Sweep(out=tmp_path).run()
    assert len(made) == len(
        json.loads((tmp_path / "figure1_sweep.json").read_text())["rows"]
    )
    table = (tmp_path / "figure1_sweep.md").read_text()
    assert "| learning_rate 0.15, init_std 0.045, replacement True |" in table
