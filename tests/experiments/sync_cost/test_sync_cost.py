import pytest

from experiments.measuring import alpha_beta
from experiments.networks import models
from experiments.sync_cost import collective_counts
from experiments.sync_cost import study as sync_cost


@pytest.mark.parametrize(
    ("devices", "microseconds"),
    [(2, 4.5), (4, 6.4), (8, 10.2), (16, 27.5), (64, 47.5), (256, 67.5), (1024, 87.5)],
)
def test_nccl_latency(devices, microseconds):
    # Worked from NCCL's table by hand.
    assert alpha_beta.nccl_seconds(devices, 0) * 1e6 == pytest.approx(
        microseconds, abs=0.06
    )


def test_no_devices_to_wait_for_cost_nothing():
    for cost in alpha_beta.HARDWARE.values():
        assert cost(1, 1000) == 0
        assert cost(2, 1000) < cost(8, 1000) < cost(8192, 1000)


def test_two_collectives_per_layer():
    calls = []

    def note(devices, size):
        calls.append((devices, size))
        return 0.0

    layer = models.NormLayer(channels=10, positions=49)
    alpha_beta.sync_seconds([layer], 8, note)
    alpha_beta.sync_seconds([layer], 1024, note)
    assert calls == [(8, 8 * 31 * 4), (8, 80), (1024, 21 * 4), (1024, 80)]


def test_threshold_follows_the_model():
    ratios = sync_cost.rows_over_sums()
    limit = sync_cost.DEVICES.index(sync_cost.sync.MAX_ROWS)
    for values in ratios.values():
        assert values[limit] <= 1.25 < values[limit + 1]


def test_study(tmp_path, monkeypatch):
    monkeypatch.setattr(collective_counts, "LAYER_CASES", (("shard_map", "jaxbn"),))
    sync_cost.SyncCost(out=tmp_path).run()
    assert (tmp_path / "sync_cost.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "sync_cost.md").read_text()
    assert "| shard_map | jaxbn | 1 | 6,176 | 2 | 6,688 | 0 |" in text
    assert "| 1 | 8 | 20 | 20 |" in text  # Ten layers on eight devices,
    assert "| 2 | 4 | 20 | 20 |" in text  # and on two processes of two.


def test_share_of_the_step():
    steps = sync_cost.unsynchronised_steps()
    # Published: 45.8 ms; 4.1 and 2.0 billion multiplications per image.
    assert steps["ResNet-50"]["TPU v3"]["ms"] == 45.8
    assert 0.4 < steps["BN-Inception"]["TPU v3"]["ms"] / 45.8 < 0.6
