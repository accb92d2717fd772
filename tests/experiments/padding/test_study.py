"""The study at a few steps, and its options."""

import json

import numpy as np
import pytest

from experiments import __main__ as main
from experiments.padding import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

OPTIONS = (
    "--quick --steps 1 --record-every 1 --units 4 --seeds 1 --tested 20 "
    "--batch-size 10 --examples 20"
)


@pytest.mark.exhaustive
def test_from_the_command_line(tmp_path, capsys):
    main.main(["padding", *OPTIONS.split(), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "padding.json").read_text())
    assert len(result["networks"]) == 9
    for found in result["networks"].values():
        assert np.shape(found["accuracy"]) == (1, 1)
    change = {name: found["change"][0][0] for name, found in result["networks"].items()}
    assert change["feed-forward, BN over padding"] > 0.01
    for name in ("feed-forward, masked BN", "recurrent, masked BN, shared"):
        assert change[name] < 1e-5  # Rounding.
    assert "Verdict: " in capsys.readouterr().out
    assert (tmp_path / "padding.png").exists()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_nine_networks():
    names = [run.name for run in study._runs(study.Padding(), rows=8, features=8)]
    assert len(set(names)) == 9
    assert "recurrent, masked BN, shared" in names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortest": 0}, "`shortest` must be 1 to 8 rows, got 0"),
        ({"shortest": 9}, "`shortest` must be 1 to 8 rows, got 9"),
        ({"examples": 10}, "`examples` must be at least 64, got 10"),
        ({"steps": 100}, "`steps` must be a multiple of `record_every`"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.Padding(**options))
