import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments import __main__ as main
from experiments.practice.fine_tune import network, source, stages
from experiments.practice.fine_tune import study as fine_tune
from jaxbn import convert


@pytest.mark.exhaustive
def test_shapes_and_names():
    net = network.Network()
    x = jnp.ones((2, 8, 8, 1))
    variables = net.init(jax.random.key(0), x, train=False)
    assert net.apply(variables, x, train=False).shape == (2, 10)
    weights = convert.to_torch(variables, network.NAMES)
    assert weights["0.weight"].shape == (16, 1, 3, 3)
    assert weights["14.weight"].shape == (10, 64)


@pytest.mark.exhaustive
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="compares with PyTorch; `pip install torch` runs it",
)
def test_pytorch_has_the_same_names_and_outputs():
    import torch

    torch.manual_seed(0)
    theirs = network.torch_network()
    x = np.random.default_rng(0).standard_normal((3, 9, 9, 1)).astype(np.float32)
    given = torch.tensor(np.moveaxis(x, -1, 1).copy())
    theirs(given)  # Moves the running statistics.
    theirs.eval()
    net = network.Network()
    template = net.init(jax.random.key(0), x, train=False)
    variables = convert.from_torch(theirs.state_dict(), template, network.NAMES)
    np.testing.assert_allclose(
        net.apply(variables, x, train=False),
        theirs(given).detach().numpy(),
        atol=1e-5,  # Float32 rounding of five layers.
    )


RNG = np.random.default_rng(0)


@pytest.mark.exhaustive
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="compares with PyTorch; `pip install torch` runs it",
)
def test_it_learns_and_is_written(tmp_path):
    labels = np.arange(200) % 2
    images = RNG.uniform(size=(200, 8, 8, 1)).astype(np.float32)
    images[labels == 1, :4] = 0  # A difference that is easily seen.
    path = tmp_path / "weights.safetensors"
    source.train(path, images, labels, epochs=5)
    logits = source.logits(path, images)
    assert np.mean(np.argmax(logits, 1) == labels) > 0.9


def test_without_pytorch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # As if it were not installed.
    with pytest.raises(ValueError, match="pip install torch"):
        source.train(tmp_path / "w.safetensors", np.ones((1, 8, 8, 1)), np.ones(1), 1)


@pytest.fixture
def weights(tmp_path):
    variables = network.Network().init(
        jax.random.key(0), jnp.ones((1, 8, 8, 1)), train=False
    )
    path = tmp_path / "given.safetensors"
    weights = convert.to_torch(variables, network.NAMES)
    safetensors.numpy.save_file(weights, path)
    return path


@pytest.mark.exhaustive
def test_all_stages(weights, tmp_path, capsys):
    options = "--labelled 20 --unlabelled 30 --steps 3 --seeds 1"
    main.main(
        [
            "fine_tune",
            "--weights",
            str(weights),
            "--out",
            str(tmp_path),
            *options.split(),
        ]
    )
    result = json.loads((tmp_path / "fine_tune_digits.json").read_text())
    shipped = result["shipped"]
    assert shipped["folded"]["layers"] == 4
    # Logits of about 1 after five layers in float32.
    assert shipped["folded"]["largest_difference"] < 1e-4
    assert shipped["folded and exported"]["largest_difference"] < 1e-4
    assert shipped["folded"]["kilobytes"] < shipped["as it is"]["kilobytes"]
    assert set(result["accuracies"]) > {"imported", "recalibrated", "not frozen"}
    before, after = result["diagnosed"]["imported"], result["diagnosed"]["recalibrated"]
    assert before[0]["mean_distance"] > 0.1  # Of a network that has seen no data.
    assert max(row["mean_distance"] for row in after) < 0.05
    assert "fine-tuned, recalibrated and frozen" in capsys.readouterr().out
    assert (tmp_path / "fine_tune_digits.png").exists()
    assert not (tmp_path / "fine_tune_digits.safetensors").exists()  # It was given.


@pytest.mark.exhaustive
def test_frozen_layers_keep_their_statistics():
    config = fine_tune.FineTune(labelled=8, batch_size=4, steps=3)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(8, 8, 8, 1)).astype(np.float32)
    split = images, np.arange(8)
    variables = network.Network().init(jax.random.key(0), images, train=False)
    for frozen in (True, False):
        after = stages.tune(config, variables, split, seed=0, frozen=frozen)
        for name, stats in variables["batch_stats"].items():
            same = np.array_equal(stats["mean"], after["batch_stats"][name]["mean"])
            assert same == frozen
        scale = after["params"]["norm0"]["scale"]
        assert not np.array_equal(scale, variables["params"]["norm0"]["scale"])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("new", "kept"), [("digits", True), ("fashion_mnist", False)])
def test_a_new_dense_layer_where_classes_are_others(new, kept):
    config = fine_tune.FineTune(
        new=new, labelled=8, batch_size=4, steps=1, learning_rate=1e-6
    )
    images = np.zeros((8, 8, 8, 1), np.float32)
    variables = network.Network().init(jax.random.key(9), images, train=False)
    after = stages.tune(config, variables, (images, np.arange(8)), 0, frozen=True)
    given, now = (v["params"]["head"]["kernel"] for v in (variables, after))
    # Adam moves a weight by the learning rate at most.
    assert np.allclose(given, now, atol=1e-5) == kept
