"""All stages, at a few steps, from weights in a file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.fine_tune import network, tuning
from experiments.fine_tune import study as fine_tune
from jaxbn import interop

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive


@pytest.fixture
def weights(tmp_path):
    variables = network.Network().init(
        jax.random.key(0), jnp.ones((1, 8, 8, 1)), train=False
    )
    path = tmp_path / "given.safetensors"
    interop.save_safetensors(path, interop.to_torch(variables, network.NAMES))
    return path


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


def test_frozen_layers_keep_their_statistics():
    config = fine_tune.FineTune(labelled=8, batch_size=4, steps=3)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(8, 8, 8, 1)).astype(np.float32)
    split = images, np.arange(8)
    variables = network.Network().init(jax.random.key(0), images, train=False)
    for frozen in (True, False):
        after = tuning.tune(config, variables, split, seed=0, frozen=frozen)
        for name, stats in variables["batch_stats"].items():
            same = np.array_equal(stats["mean"], after["batch_stats"][name]["mean"])
            assert same == frozen
        scale = after["params"]["norm0"]["scale"]
        assert not np.array_equal(scale, variables["params"]["norm0"]["scale"])


@pytest.mark.parametrize(("new", "kept"), [("digits", True), ("fashion_mnist", False)])
def test_a_new_dense_layer_where_classes_are_others(new, kept):
    config = fine_tune.FineTune(
        new=new, labelled=8, batch_size=4, steps=1, learning_rate=1e-6
    )
    images = np.zeros((8, 8, 8, 1), np.float32)
    variables = network.Network().init(jax.random.key(9), images, train=False)
    after = tuning.tune(config, variables, (images, np.arange(8)), 0, frozen=True)
    given, now = (v["params"]["head"]["kernel"] for v in (variables, after))
    # Adam moves a weight by the learning rate at most.
    assert np.allclose(given, now, atol=1e-5) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"labelled": 3}, "`batch_size` must be at most `labelled`, 3, got 4"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        fine_tune.check(fine_tune.FineTune(**options))
