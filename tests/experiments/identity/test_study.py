import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.identity import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

TINY = "--quick --steps 4 --records 2 --batch-sizes 5 --seeds 2"


@pytest.mark.exhaustive  # Compiling takes ten seconds.
def test_a_short_run(tmp_path, capsys):
    folders = ["--out", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    main.main(["identity", *TINY.split(), *folders])
    result = json.loads((tmp_path / "identity.json").read_text())
    assert "these values recover the input | **holds**" in capsys.readouterr().out
    assert np.shape(result["learnt"]["5"]["scale"]) == (2, 2)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_full_batches_find_deviation_and_mean():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((30, 2)) * [2.0, 0.5] + [1.0, -1.0])
    run = study.make_run(30, 0.3, 2)
    state, step = jax.jit(run.init)(jax.random.key(0)), jax.jit(run.step)
    for _ in range(60):
        state = step(state, {"x": x})
    found = run.record(state, {"x": x, "mean": x.mean(0), "std": x.std(0)})
    assert found["scale"] < 1e-4  # .7^60, and epsilon over the variance.
    assert found["bias"] < 1e-4
    assert found["training"] < 1e-8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-sizes 1 2", "`batch_sizes` must be at least 2"),
        ("--learning-rate inf", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
        main.main(["identity", *options.split(), "--out", str(tmp_path)])
