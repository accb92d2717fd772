import itertools

import jax
import pytest

from experiments.measuring import alpha_beta, hlo_paths
from experiments.networks import models
from experiments.policy_cost import modelled, network

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


def test_predictions(monkeypatch):
    monkeypatch.setattr(modelled, "NETWORKS", {"ResNet-50": models.ResNet50})
    # The real function compiles programs for minutes.
    monkeypatch.setattr(alpha_beta, "flops", lambda network: 1e9)
    found = modelled.predictions()
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
