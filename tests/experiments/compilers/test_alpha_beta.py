import pytest

from experiments.compilers import alpha_beta
from experiments.networks import models


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
