import chex
import flax.linen as nn
import pytest

from experiments.benchmark import devices as benchmark_devices
from jaxbn import linen


@pytest.mark.parametrize(
    "style", ["jit", pytest.param("shard_map", marks=pytest.mark.exhaustive)]
)
def test_layer_on_several_devices(style, monkeypatch):
    monkeypatch.setattr(benchmark_devices, "SHAPE", (8, 3, 3, 4))
    expected = benchmark_devices.program(nn.BatchNorm, "jit", 1)()
    for cls in (linen.BatchNorm, nn.BatchNorm):
        step = benchmark_devices.program(cls, style, 4)()
        assert len(step.y.sharding.device_set) == 4
        # The running variance, left out, differs by m / (m - 1).
        left_out = {"stats": None}
        chex.assert_trees_all_close(
            step._replace(**left_out), expected._replace(**left_out), atol=1e-4
        )
    row = benchmark_devices.compare(style, 4, rounds=2)
    assert row["devices"] == 4
