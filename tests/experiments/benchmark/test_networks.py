import pytest

from experiments.benchmark import networks as benchmark_networks


@pytest.mark.exhaustive
def test_memory_of_a_stack():
    rows = benchmark_networks.memory(rounds=2, depth=4, shape=(256, 64))
    kept = {name: row["kept"] for name, row in rows.items()}
    assert kept["flax.linen"] > 3  # The centred input, a product, the output, a mask.
    assert kept["jaxbn"] == 2
    assert kept["jaxbn, in_place"] == kept["jaxbn, recomputed"] == 1
    scanned = {name: row["scanned"] for name, row in rows.items()}
    assert scanned["jaxbn, in_place"] < scanned["jaxbn"] < scanned["flax.linen"]


def test_compile_times():
    times = benchmark_networks.compile_times(depth=1, repeats=1)
    assert set(times) == {"jaxbn", "flax.linen"}
    assert all(t["compile"] > 0 for t in times.values())
