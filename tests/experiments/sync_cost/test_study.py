import pytest

from experiments.sync_cost import collective_counts
from experiments.sync_cost import study as sync_cost
from jaxbn.core import sync


def test_threshold_follows_the_model():
    ratios = sync_cost.rows_over_sums()
    limit = sync_cost.DEVICES.index(sync.MAX_ROWS)
    for values in ratios.values():
        assert values[limit] <= 1.25 < values[limit + 1]


@pytest.mark.exhaustive
def test_study(tmp_path, monkeypatch):
    monkeypatch.setattr(collective_counts, "LAYER_CASES", (("shard_map", "jaxbn"),))
    sync_cost.SyncCost(out=tmp_path).run()
    assert (tmp_path / "sync_cost.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "sync_cost.md").read_text()
    assert "| shard_map | jaxbn | 1 | 6,176 | 2 | 6,688 | 0 |" in text
    assert "| 1 | 8 | 20 | 20 |" in text  # Ten layers on eight devices,
    assert "| 2 | 4 | 20 | 20 |" in text  # and on two processes of two.


@pytest.mark.exhaustive
def test_share_of_the_step():
    steps = sync_cost.unsynchronised_steps()
    # Published: 45.8 ms; 4.1 and 2.0 billion multiplications per image.
    assert steps["ResNet-50"]["TPU v3"]["ms"] == 45.8
    assert 0.4 < steps["BN-Inception"]["TPU v3"]["ms"] / 45.8 < 0.6
