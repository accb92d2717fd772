import dataclasses
import json

import numpy as np
import pytest

from experiments import __main__ as main
from experiments.learning_rate_ladder import report
from experiments.learning_rate_ladder import study as ladder
from experiments.networks import inception_paper as paper
from experiments.networks import inception_training as it

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive


def test_rungs():
    rungs = {rung.name: rung for rung in ladder.rungs(ladder.LearningRateLadder())}
    assert list(rungs)[:6] == list(it.RECIPES) == list(paper.BEST)
    assert rungs["Inception-x30"].recipe == it.Recipe(learning_rate=30)
    assert rungs["BN-x10"].recipe == dataclasses.replace(
        it.RECIPES["BN-x5"], learning_rate=10
    )
    deeper = rungs["BN-x5, 5 modules"]
    assert (deeper.recipe, deeper.modules) == (it.RECIPES["BN-x5"], 5)
    assert rungs["Inception"].share == 1
    for modules, names in ladder.DEPTHS.items():
        assert len(names) == modules
        assert {"3c", "4e"} <= set(names)


def test_times_fewer_in_the_paper():
    assert round(paper.times_fewer("BN-x5")) == 15  # "14 times", of rounded steps.
    assert paper.times_fewer("BN-Baseline") > 2
    assert paper.times_fewer("BN-x5-Sigmoid") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "`steps`"),
        ({"test_images": 0}, "`test_images` must be at least 1, got 0"),
        ({"depths": (4,)}, r"`depths` must be among \(2, 3, 5, 10\), got \(4,\)"),
        ({"checkpoint_every": 150}, "`checkpoint_every` must be a multiple"),
        ({"modules": ("6a",)}, r"`modules` must be among .*, got \('6a',\)"),
        ({"width": 0.0}, "`width` must be positive and finite, got 0.0"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be positive"),
        ({"sgd_momentum": 1.0}, r"`sgd_momentum` must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options(change, message):
    of_hp = {field.name for field in dataclasses.fields(it.Hyperparameters)}
    name = next(iter(change))
    if name in of_hp:
        change = {"hp": it.Hyperparameters(**change)}
    with pytest.raises(ValueError, match=message):
        ladder.check(ladder.LearningRateLadder(**change))


@pytest.mark.exhaustive
def test_a_few_steps(tmp_path, capsys):
    main.main(
        "learning_rate_ladder --dataset digits --steps 40 --record-every 4 "
        "--checkpoint-every 20 --seeds 2 --test-images 50 --rates 2 --depths "
        f"--modules 3c --width 0.02 --stem-stride 1 --out {tmp_path}".split()
    )
    path = tmp_path / "learning_rate_ladder_digits.json"
    result = json.loads(path.read_text())
    json.dumps(result, allow_nan=False)
    runs = result["runs"]
    assert set(runs) == {*it.RECIPES, "Inception-x5", "Inception-x30", "BN-x2"}
    for name, records in (("Inception", 10), ("BN-x5", 2), ("Inception-x5", 1)):
        assert np.shape(runs[name]["accuracy"]) == (records, 2)
    assert runs["BN-x30"]["learning_rate"] == 30 * runs["Inception"]["learning_rate"]
    assert runs["BN-x5"]["loss"] != runs["BN-x30"]["loss"]
    first, second = np.array(runs["BN-x5"]["loss"]).T
    assert np.any(first != second)
    assert "Fewer steps with Batch Normalization" in capsys.readouterr().out
    assert report.write(path)
    assert not list(tmp_path.glob("checkpoints/*"))
