"""The study at a few steps, and its options."""

import json

import numpy as np
import pytest

from experiments import __main__ as main
from experiments.placement import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

OPTIONS = (
    "--quick --steps 1 --residual-steps 1 --record-every 1 --hidden 6 --channels 2 "
    "--seeds 1 --tested 20 --batch-size 10 --activations relu"
)


@pytest.mark.exhaustive
def test_from_the_command_line(tmp_path, capsys):
    main.main(["placement", *OPTIONS.split(), "--out", str(tmp_path)])
    parts = json.loads((tmp_path / "placement.json").read_text())["parts"]
    assert set(parts["fully connected"]["accuracy"]) == {
        "relu, before", "relu, after", "relu, none",
    }  # fmt: skip
    assert len(parts["residual"]["accuracy"]) == 3
    for part in parts.values():
        assert part["step"] == [1]
        for accuracy in part["accuracy"].values():
            assert np.shape(accuracy) == (1, 1)
    assert "Verdict: " in capsys.readouterr().out
    assert (tmp_path / "placement.png").exists()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_every_part_has_networks_of_its_own():
    config = study.Placement()
    connected, residual = study._parts(config, (28, 28, 1))
    assert len(connected.runs) == 9
    assert connected.plan.steps == config.steps
    assert residual.plan.steps == config.residual_steps
    assert all(run.convolves for run in residual.runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": ("softsign",)}, "`activations` must be among"),
        ({"activations": ()}, "`activations` must be among"),
        ({"residual_steps": 7}, "`steps` must be a multiple of `record_every`"),
        ({"channels": 0}, "`channels` must be at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.Placement(**options))
