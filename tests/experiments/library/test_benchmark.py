import functools
import importlib.util
import json

import chex
import flax.linen as nn
import numpy as np
import pytest

from experiments.framework import output
from experiments.library.benchmark import devices as benchmark_devices
from experiments.library.benchmark import folded, peers, report, study, worker
from experiments.library.benchmark import layers as benchmark_layers
from experiments.library.benchmark import networks as benchmark_networks
from experiments.networks import models
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


@pytest.mark.exhaustive
def test_a_small_network():
    small = functools.partial(models.SmallNetwork, blocks=((16, 2), (16, 1)))
    rows = folded.network(small, rounds=2, images=2, size=16)
    assert set(rows) == {"flax.linen", "jaxbn", "folded"}
    assert rows["jaxbn"]["arrays"] == rows["flax.linen"]["arrays"]
    assert rows["folded"]["arrays"] < rows["jaxbn"]["arrays"]
    assert rows["folded"]["into_others"] == rows["folded"]["layers"] == 9
    assert rows["folded"]["error"] < 1e-5  # Float32 rounding of ten layers.
    assert rows["folded"]["over_folded"] == (1, 1, 1)
    text = report._folded_table({"folded": {"Small": rows}})
    assert "(9 of 9 layers folded into others)" in text
    assert "| Small | jaxbn |" in text


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


SHAPE_PEERS = (6, 3, 3, 4)
# With `-m exhaustive`: PyTorch is large, and not installed by README's command.
TORCH = pytest.param(
    "torch",
    marks=[
        pytest.mark.exhaustive,
        pytest.mark.skipif(
            importlib.util.find_spec("torch") is None,
            reason="compares with PyTorch; `pip install torch` runs it",
        ),
    ],
)


@pytest.mark.first_case
@pytest.mark.parametrize("name", [*(n for n in peers.PEERS if n != "torch"), TORCH])
@pytest.mark.filterwarnings("default")  # Of the peers' own.
def test_every_peer_computes_the_same_layer(name):
    def found(name):
        y, _, (dx, *affine) = peers.PEERS[name](SHAPE_PEERS, "float32").both()
        y, dx, *affine = (
            np.asarray(a.detach() if name == "torch" else a) for a in (y, dx, *affine)
        )
        if name in ("equinox", "torch"):  # In their own layout.
            y, dx = (np.moveaxis(a, 1, -1) for a in (y, dx))
        return [y, dx, *(a.reshape(4) for a in affine)]

    actual = found(name)
    for a, b in zip(actual, found("jaxbn"), strict=True):  # Rounding of values to 10.
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
    x, dy = peers.make_batch(SHAPE_PEERS, "float32")
    np.testing.assert_allclose(actual[3], dy.sum((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(actual[0].mean((0, 1, 2)), 0, atol=1e-5)
    assert x.mean() > 0.5


def test_aims_are_judged():
    row = {"over_jaxbn": {"flax.linen": [1.6, 1, 2], peers.LIMIT: [0.5, 0.4, 0.6]}}
    times = {"flax.linen": {"trace": 1.0, "compile": 1.0}}
    result = {
        "layers": {dtype: [{"both": row}] for dtype in ("float32", "bfloat16")},
        "depth": {"50": times | {"jaxbn": {"trace": 0.9, "compile": 1.2}}},
    }
    text = report._aims(result)
    assert "| flax.linen over jaxbn, float32 | 1.5 or more | 1.60 | met |" in text
    assert "| jaxbn over the limit, float32 | 1.3 or less | 2.00 | missed |" in text
    assert "| tracing of 50 layers, of Flax's | 1.0 or less | 0.90 | met |" in text
    assert "| both | 1.0 or less | 1.05 | missed |" in text
    assert "PyTorch" not in text  # Not measured.


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
    text = study.Benchmark.write_pages(tmp_path / "benchmark.json")
    assert "| Forward and backward | float32 |" in text
    assert (tmp_path / "benchmark_layers.png").exists()
    assert not (tmp_path / "benchmark_memory.png").exists()  # Not measured.


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
