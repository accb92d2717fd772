import importlib.util
import json
import pathlib

import chex
import flax.linen as nn
import numpy as np
import pytest

from experiments.benchmark import devices as benchmark_devices
from experiments.benchmark import figures as benchmark_figures
from experiments.benchmark import layers as benchmark_layers
from experiments.benchmark import networks as benchmark_networks
from experiments.benchmark import study as benchmark
from experiments.measuring import interleaved, peers
from jaxbn import linen

SHAPE = (6, 3, 3, 4)


TORCH = pytest.param(
    "torch",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("torch") is None,
        reason="PyTorch, of the extra `peers`, is too large to install for one test",
    ),
)


@pytest.mark.parametrize("name", [*(n for n in peers.PEERS if n != "torch"), TORCH])
@pytest.mark.filterwarnings("default")  # Of the peers' own.
def test_every_peer_computes_the_same_layer(name):
    def found(name):
        y, _, (dx, *affine) = peers.PEERS[name](SHAPE, "float32").both()
        y, dx, *affine = (
            np.asarray(a.detach() if name == "torch" else a) for a in (y, dx, *affine)
        )
        if name in ("equinox", "torch"):  # In their own layout.
            y, dx = (np.moveaxis(a, 1, -1) for a in (y, dx))
        return [y, dx, *(a.reshape(4) for a in affine)]

    actual = found(name)
    for a, b in zip(actual, found("jaxbn"), strict=True):  # Rounding of values to 10.
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    x, dy = peers.make_batch(SHAPE, "float32")
    np.testing.assert_allclose(actual[3], dy.sum((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(actual[0].mean((0, 1, 2)), 0, atol=1e-5)
    assert x.mean() > 0.5


def test_missing_peers_are_listed(monkeypatch):
    def missing(shape, dtype):
        raise ImportError("No module named 'nothing'")

    monkeypatch.setitem(peers.PEERS, "haiku", missing)
    row = benchmark_layers.compare(SHAPE, "float32", 2, ("jaxbn", "haiku"))
    assert row["missing"] == {"haiku": "No module named 'nothing'"}
    assert list(row["both"]["over_jaxbn"]) == [peers.LIMIT]


def test_ratios():
    ratio = interleaved.ratio([2.0, 4.0, 12.0], [1.0, 1.0, 2.0])
    assert ratio == (4.0, 3.0, 5.0)
    assert interleaved.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_programs_take_turns():
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    taken = interleaved.seconds(programs, rounds=3, at_least=0.0)
    assert {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3}
    rounds = "".join(calls).removeprefix("aabb")
    rounds = [rounds[i : i + 2] for i in range(0, len(rounds), 2)]
    assert len(rounds) == 4
    assert set(rounds) == {"ab", "ba"}


def test_memory_of_a_stack():
    rows = benchmark_networks.memory(rounds=2, depth=4, shape=(256, 64))
    kept = {name: row["kept"] for name, row in rows.items()}
    assert kept["flax.linen"] > 3  # The centred input, a product, the output, a mask.
    assert kept["jaxbn"] == 2
    assert kept["jaxbn, in_place"] == kept["jaxbn, recomputed"] == 1
    scanned = {name: row["scanned"] for name, row in rows.items()}
    assert scanned["jaxbn, in_place"] < scanned["jaxbn"] < scanned["flax.linen"]


@pytest.mark.parametrize("style", benchmark_devices.STYLES)
def test_layer_on_several_devices(style, monkeypatch):
    monkeypatch.setattr(benchmark_devices, "SHAPE", (8, 3, 3, 4))
    expected = benchmark_devices.program(nn.BatchNorm, "jit", 1)()
    for cls in (linen.BatchNorm, nn.BatchNorm):
        y, _, gradients = benchmark_devices.program(cls, style, 4)()
        assert len(y.sharding.device_set) == 4
        # The running variance, left out, differs by m / (m - 1).
        chex.assert_trees_all_close((y, gradients), expected[::2], atol=1e-4)
    row = benchmark_devices.compare(style, 4, rounds=2)
    assert row["devices"] == 4


def test_compile_times():
    times = benchmark_networks.compile_times(depth=1, repeats=1)
    assert set(times) == {"jaxbn", "flax.linen"}
    assert all(t["compile"] > 0 for t in times.values())


def test_kept_for_the_backward_pass():
    kept = benchmark_layers.kept("bfloat16")
    assert 1 <= kept["jaxbn, activation"] <= 1.05
    assert kept["jaxbn, activation"] < kept["jaxbn, then relu"]
    assert kept["jaxbn, then relu"] < kept["flax.linen, then relu"]


def test_traffic_of_the_peers():
    rows = benchmark_layers.traffic("float32", (8, 8, 8, 16))
    limit = rows[peers.LIMIT]
    assert (limit["read"], limit["written"]) == (6, 2)
    assert rows["jaxbn"]["read"] + rows["jaxbn"]["written"] == 10
    flax = rows["flax.linen"]
    assert flax["read"] + flax["written"] > 10


def test_committed_results_make_the_committed_table(tmp_path):
    results = pathlib.Path(benchmark.__file__).parent / "results"
    result = json.loads((results / "benchmark.json").read_text())
    assert benchmark.table(result) == (results / "benchmark.md").read_text()
    benchmark_figures.layers(tmp_path / "layers.png", result)
    benchmark_figures.scaling(tmp_path / "scaling.png", result)
    benchmark_figures.memory(tmp_path / "memory.png", result)
