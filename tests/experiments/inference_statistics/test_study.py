"""The study at a few steps, and Algorithm 2 against float64."""

import json

import jax
import jax.flatten_util
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.inference_statistics import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

OPTIONS = "--quick --steps 2 --record-every 1 --batch-sizes 4 --hidden 5 --seeds 1"


def test_from_the_command_line(tmp_path, capsys):
    main.main(["inference_statistics", *OPTIONS.split(), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "inference_statistics.json").read_text())
    assert result["step"] == [1, 2]
    found = result["sizes"]["4"]
    assert np.shape(found["during"]["ema"]["mean"]) == (2, 1, 1)
    ratio = found["after"]["algorithm 2"]["ratio"][0][0]
    assert abs(ratio - 1) < 0.1  # 375 batches of four.
    biased = found["after"]["algorithm 2, biased"]["ratio"][0][0]
    assert abs(biased - 3 / 4 * ratio) < 1e-4
    assert "Verdict: " in capsys.readouterr().out
    assert (tmp_path / "inference_statistics.png").exists()
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.exhaustive
def test_algorithm_2_against_float64():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 3)).astype(np.float32)
    split = {"image": images, "label": np.zeros(40, np.int32)}
    config = study.InferenceStatistics(hidden=(6,), population=40)
    model = study._network(config)
    params = model.init(jax.random.key(0), images, train=False)["params"]
    flat, _ = jax.flatten_util.ravel_pytree(params)
    found = study.algorithm_2(config, 4, np.array(flat)[None], split, split)
    u = np.float64(images) @ np.float64(params["Dense_0"]["kernel"])
    batches = u.reshape(10, 4, 6)
    ratio = np.mean(batches.var(1, ddof=1).mean(0) / u.var(0))
    error = (batches.mean(1).mean(0) - u.mean(0)) / u.std(0)
    made = found["algorithm 2"]
    # Four digits are kept.
    np.testing.assert_allclose(made["ratio"], [[ratio]], rtol=1e-3)
    np.testing.assert_allclose(made["mean"], [[np.sqrt(np.mean(error**2))]], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (1, 2)}, "`batch_sizes` must be at least 2, got"),
        ({"momentum": 1.5}, r"`momentum` must lie in \[0, 1\], got 1.5"),
        ({"population": 100}, "`population` must be at least 512, got 100"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive and finite"),
        ({"steps": 7}, "`steps` must be a multiple of `record_every`"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.InferenceStatistics(**options))
