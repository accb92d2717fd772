"""The study at a few steps, and its options."""

import json

import jax
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.batch_size import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

OPTIONS = "--quick --epochs 1 --batch-sizes 20 --examples 40 --hidden 10 --seeds 1"


def test_from_the_command_line(tmp_path, capsys):
    main.main(["batch_size", *OPTIONS.split(), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "batch_size.json").read_text())
    found = result["sizes"]["20"]
    assert set(found) == {"BN", "GN", "LN"}
    assert set(found["BN"]) == {"running", "population", "batch"}
    assert np.shape(found["GN"]["running"]) == (1, 1)
    assert "Verdict: " in capsys.readouterr().out
    assert (tmp_path / "batch_size.png").exists()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_the_learning_rate_is_in_proportion():
    config = study.BatchSize(hidden=(10,))
    for size in (2, 512):
        run = study._runs(config, size, 6)[-1]
        state = run.init(jax.random.key(0))
        rate = state.opt_state.hyperparams["learning_rate"]
        np.testing.assert_allclose(rate, 0.002 * size, rtol=1e-6)
        assert run.batch_size == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (2, 1)}, "`batch_sizes` must be at least 2, got"),
        ({"examples": 100}, "`examples` must be at least 512, got 100"),
        ({"groups": 7}, r"`groups` must divide the units of every layer, .* got 7"),
        ({"momentum": -0.1}, r"`momentum` must lie in \[0, 1\]"),
        ({"rate_per_example": 0.0}, "`rate_per_example` must be positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.BatchSize(**options))
