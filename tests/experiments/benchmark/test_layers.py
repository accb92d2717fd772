import pytest

from experiments.benchmark import layers as benchmark_layers
from experiments.measuring import peers

SHAPE = (6, 3, 3, 4)


def test_missing_peers_are_listed(monkeypatch):
    def missing(shape, dtype):
        raise ImportError("No module named 'nothing'")

    monkeypatch.setitem(peers.PEERS, "haiku", missing)
    row = benchmark_layers.compare(SHAPE, "float32", 2, ("jaxbn", "haiku"))
    assert row["missing"] == {"haiku": "No module named 'nothing'"}
    assert list(row["both"]["over_jaxbn"]) == [peers.LIMIT]


def test_kept_for_the_backward_pass():
    kept = benchmark_layers.kept("bfloat16")
    assert 1 <= kept["jaxbn, activation"] <= 1.05
    assert kept["jaxbn, activation"] < kept["jaxbn, then relu"]
    assert kept["jaxbn, then relu"] < kept["flax.linen, then relu"]


@pytest.mark.exhaustive
def test_traffic_of_the_peers():
    rows = benchmark_layers.traffic("float32", (8, 8, 8, 16))
    limit = rows[peers.LIMIT]
    assert (limit["read"], limit["written"]) == (6, 2)
    assert rows["jaxbn"]["read"] + rows["jaxbn"]["written"] == 10
    flax = rows["flax.linen"]
    assert flax["read"] + flax["written"] > 10
