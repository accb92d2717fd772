import copy
import itertools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.compilers import alpha_beta, hlo_paths
from experiments.library.sync_cost import (
    collective_counts,
    mlperf,
    modelled,
    network,
    report_policies,
    study,
)
from experiments.networks import models
from jaxbn._core import collectives


@pytest.mark.exhaustive
def test_parameters():
    assert mlperf.parameters(models.ResNet50()) == mlperf.PARAMETERS


@pytest.mark.exhaustive
def test_what_is_fitted_and_what_is_predicted():
    found = mlperf.compare()
    rows = found["runs"]
    # Runs whose five are equal, with nothing to synchronise.
    assert [row["cores"] for row in rows if row["fitted"]] == [32, 128]
    for row in rows:
        whole = row["computed_ms"] + row["gradient_ms"] + row["sync_ms"]
        np.testing.assert_allclose(row["predicted_ms"], whole, atol=0.11)
        limit = 0.001 if row["fitted"] else 0.2
        assert abs(row["error"]) <= limit
    # The published time has parts of the whole run that do not belong to a step.
    assert all(row["steady_ms"] < row["published_ms"] for row in rows)


def test_a_straight_line_misses_small_batches():
    errors = mlperf.straight_line()["errors"]
    assert max(abs(error) for error in errors[:5]) < 0.05
    assert min(errors[6:]) > 0.4


def test_fewer_images_take_more_cycles_each():
    each = [cycles / images for images, cycles in sorted(mlperf.CYCLES.items())]
    assert each == sorted(each, reverse=True)


LAYERS = [models.NormLayer(10, 49), models.NormLayer(20, 49)]


def test_sent_floats_by_hand():
    expected = {
        "none": 0,
        "Exact": 8 * (31 + 61) + 60,
        "Sampled": 8 * (31 + 61) + 60,
        "Periodic": (8 * (31 + 61) + 60) / 8,
        "Group": 8 * (31 + 61) + 60,
        "Local": 8 * (31 + 61),
        "FrozenAfter": 0,
        "Stale": 5 * 30,
    }
    for policy, floats in expected.items():
        assert modelled.sent_floats(policy, LAYERS, 8) == floats
    assert modelled.sent_floats("Exact", LAYERS, 64) == 21 + 41 + 60
    assert modelled.sent_floats("Local", LAYERS, 64) == 21 + 41 + 60
    assert modelled.sent_floats("Group", LAYERS, 64) == 64 * (31 + 61) + 8 * 60
    assert modelled.sent_floats("Group, apart", LAYERS, 64) == 8 * (31 + 61) + 60


def test_what_is_waited_for():
    calls = []

    def note(devices, size):
        calls.append((devices, size))
        return 1.0

    assert modelled.seconds("Exact", LAYERS, 64, note, 100) == 4
    assert modelled.seconds("Periodic", LAYERS, 64, note, 100) == 0.5
    assert modelled.seconds("Group, apart", LAYERS, 64, note, 100) == 4
    assert {devices for devices, _ in calls[-4:]} == {8}
    assert modelled.seconds("Stale, apart", LAYERS, 64, note, 100) == 1
    assert calls[-1] == (64, 4 * 5 * 30)
    # Many devices need two collectives, and one of them is packed.
    assert modelled.seconds("Local", LAYERS, 64, note, 100) == 1
    assert calls[-3:] == [(64, 4 * 122), (64, 100 + 2 * 122), (64, 100)]
    # A packed message adds its bytes, but no collective of its own.
    assert modelled.seconds("Stale", LAYERS, 64, note, 100) == 0
    assert calls[-2:] == [(64, 100 + 600), (64, 100)]


def test_a_gpu_adds_up_twice_where_devices_are_many():
    layers = [models.NormLayer(0, 1)]
    for devices, number in ((32, 2), (64, 3)):
        each = alpha_beta.nccl_seconds(devices, 0)
        found = modelled.seconds("Exact", layers, devices, alpha_beta.nccl_seconds, 0)
        assert found == pytest.approx(number * each, rel=1e-3)


@pytest.mark.exhaustive
def test_predictions(monkeypatch):
    monkeypatch.setattr(modelled, "NETWORKS", {"ResNet-50": models.ResNet50})
    # The real function compiles programs for minutes.
    monkeypatch.setattr(alpha_beta, "flops", lambda network: 1e9)
    found = modelled.by_policy()
    assert found["devices"] == list(modelled.DEVICES)
    made = found["networks"]["ResNet-50"]
    layers = models.norm_layers(models.ResNet50())
    assert made["layers"] == len(layers) == 53
    for policy in modelled.POLICIES:
        sent = [modelled.sent_floats(policy, layers, n) for n in modelled.DEVICES]
        assert made["sent_floats"][policy] == [round(floats) for floats in sent]
    tpu = made["hardware"]["TPU v3"]
    assert tpu["step_ms"] == alpha_beta.UNSYNCHRONISED["TPU v3"][0]
    assert all(a < b for a, b in itertools.pairwise(tpu["added_ms"]["Exact"]))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["Exact", "Local", "Stale"])
def test_compiled_programs_send_that_many(name):
    setting = network.Setting(widths=(4,), size=4, images=2)
    mesh = network.mesh_of(jax.devices())
    sizes = {}
    for policy in ("none", name):
        step = network.make(policy, setting, mesh, abstract=True)
        text = step.function.lower(step.state, step.batch).compile().as_text()
        sizes[policy] = hlo_paths.waiting(text).bytes
    floats = modelled.sent_floats(name, network.layers(setting), 8)
    assert sizes[name] - sizes["none"] == 4 * floats


RATIO = {"median": 1.0, "low": 0.98, "high": 1.02}
COUNTS = {
    "collectives": 2, "waited_for": 1, "in_a_row": 2, "conditional": 0,
    "conditional_waited_for": 0, "bytes": 100, "conditional_bytes": 0,
}  # fmt: skip
EXACT = COUNTS | {"collectives": 8, "waited_for": 7, "in_a_row": 7}
TIMED = {"ms": 1.0, "over_none": RATIO, "over_local": RATIO}
PROGRAM = {"target": "v5e:2x4", "devices": 8, "layers": 3, "kernels": 9, "cycles": 4}
NAMES = ("none", "Exact", "Local", "Stale")


def made():
    part = {
        name: TIMED | {"collectives": EXACT if name == "Exact" else COUNTS}
        for name in NAMES
    }
    added = {policy: [0.1] * len(modelled.DEVICES) for policy in modelled.POLICIES}
    hardware = {
        name: {"step_ms": 40.0, "added_ms": added}
        for name in ("TPU v3", "GPU, nodes of 8")
    }
    run = {
        "run": "v0.6", "cores": 32, "images_per_core": 8, "group": 1,
        "published_ms": 11.0, "steady_ms": 10.0, "spread": 0.1, "predicted_ms": 11.0,
        "error": 0.1, "fitted": False,
    }  # fmt: skip
    return {
        "measured": {"layers": 3, "eight devices": part, "two processes": part},
        "compiled": [
            PROGRAM | {"policy": name} | (EXACT if name == "Exact" else COUNTS)
            for name in NAMES
        ],
        "modelled": {
            "devices": list(modelled.DEVICES),
            "networks": {
                "ResNet-50": {
                    "layers": 53,
                    "hardware": hardware,
                    "sent_floats": {
                        policy: [5] * len(modelled.DEVICES)
                        for policy in modelled.POLICIES
                    },
                }
            },
        },
        "mlperf": {"factor": 0.8, "runs": [run], "straight_line": {"errors": [0.5]}},
    }


def test_all_as_expected():
    result = made()
    assert all(report_policies.statements(result).values())
    text = report_policies.table(result)
    assert text.startswith("Verdict: holds.")
    assert "| Stale | 2 | 1 | 5 | 1.00 (0.98 to 1.02) |" in text
    assert "| v5e:2x4, 8 devices | Exact | 8 | 7 | 7 | 0 | 0 | 9 | 1.00 |" in text


def test_each_can_fail():
    ways = {
        "collective more": lambda r: r["compiled"][3].update(collectives=3),
        "no layer waits": lambda r: r["compiled"][3].update(waited_for=2),
        "wait for all": lambda r: r["compiled"][1].update(waited_for=6),
        "within 5 %": lambda r: r["measured"]["two processes"]["Stale"].update(
            over_local=RATIO | {"high": 1.06}
        ),
        "under 1 %": lambda r: r["modelled"]["networks"]["ResNet-50"]["hardware"][
            "TPU v3"
        ].update(step_ms=9.0),
        "published steps": lambda r: r["mlperf"]["runs"][0].update(error=-0.21),
    }
    for words, spoil in ways.items():
        result = copy.deepcopy(made())
        spoil(result)
        failed = [
            name
            for name, held in report_policies.statements(result).items()
            if not held
        ]
        assert len(failed) == 1
        assert words in failed[0]
        assert report_policies.table(result).startswith("Verdict: holds partly.")


def test_without_compiled_programs():
    result = made() | {"compiled": []}
    assert len(report_policies.statements(result)) == 3
    assert "no normalised layers" in report_policies.table(result)


FOLDER = pathlib.Path(study.__file__).parent
COMMITTED = FOLDER / "results" / "policy_cost.json"


def test_the_network_has_the_layers_it_says():
    assert len(network.layers(network.Setting())) == 12


def test_parts_that_are_not_done_again_are_kept(monkeypatch):
    monkeypatch.setattr(study.modelled, "by_policy", lambda: "modelled anew")
    monkeypatch.setattr(study.mlperf, "compare", lambda: "compared anew")
    known = {"measured": 1, "modelled": 2, "mlperf": 3, "compiled": [4]}
    (made,) = study.PolicyCost(part="modelled").results(known)
    assert made.pop("command") == "python -m experiments policy_cost"
    assert made == {
        "measured": 1, "modelled": "modelled anew", "mlperf": "compared anew",
        "compiled": [4],
    }  # fmt: skip


@pytest.mark.exhaustive
def test_policies(tmp_path):
    # The model, which compiles large networks, is that of the committed results. Exact
    # synchronisation is counted in tests/test_sync_policies.py.
    shutil.copy(COMMITTED, tmp_path)
    options = "--part measured --quick --rounds 2 --policies none Local Stale"
    main.main(["policy_cost", *options.split(), "--out", str(tmp_path)])
    assert (tmp_path / "policy_cost.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "policy_cost.json").read_text())["measured"]
    assert found["layers"] == 3
    for part in ("eight devices", "two processes"):
        rows = {name: row["collectives"] for name, row in found[part].items()}
        # As many as without synchronisation.
        for key in ("collectives", "waited_for"):
            assert rows["Stale"][key] == rows["Local"][key] == rows["none"][key]


def test_threshold_follows_the_model():
    ratios = modelled.rows_over_sums()
    limit = modelled.DEVICES.index(collectives.MAX_ROWS)
    for values in ratios.values():
        assert values[limit] <= 1.25 < values[limit + 1]


@pytest.mark.exhaustive
def test_exact_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(collective_counts, "LAYER_CASES", (("shard_map", "jaxbn"),))
    study.SyncCost(out=tmp_path).run()
    assert (tmp_path / "sync_cost.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "sync_cost.md").read_text()
    assert "| shard_map | jaxbn | 1 | 6,176 | 2 | 6,688 | 0 |" in text
    assert "| 1 | 8 | 20 | 20 |" in text  # Ten layers on eight devices,
    assert "| 2 | 4 | 20 | 20 |" in text  # and on two processes of two.


@pytest.mark.exhaustive
def test_share_of_the_step():
    steps = modelled.unsynchronised_steps()
    # Published: 45.8 ms; 4.1 and 2.0 billion multiplications per image.
    assert steps["ResNet-50"]["TPU v3"]["ms"] == 45.8
    assert 0.4 < steps["BN-Inception"]["TPU v3"]["ms"] / 45.8 < 0.6
