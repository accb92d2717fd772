"""The study at a few steps, and its loss."""

import json

import jax
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.networks import fully_connected
from experiments.regularisation import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

OPTIONS = (
    "--quick --steps 4 --record-every 4 --hidden 6 --seeds 1 --examples 20 "
    "--batch-size 10 --dropout 0 0.4 --l2 1"
)


@pytest.mark.exhaustive
def test_from_the_command_line(tmp_path, capsys):
    main.main(["regularisation", *OPTIONS.split(), "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "regularisation.json").read_text())["rows"]
    assert len(rows) == 2 * (4 + 1)
    for network in ("BN", "without BN"):
        mine = [row for row in rows if row["network"] == network]
        assert [(row["dropout"], row["l2"], row["batches"]) for row in mine] == [
            (0.0, 0.0, "reshuffled"),
            (0.4, 0.0, "reshuffled"),
            (0.0, 0.2, "reshuffled"),
            (0.0, 1.0, "reshuffled"),
            (0.0, 0.0, "fixed"),
        ]
        # Each of those side by side has regularisation of its own.
        made = {(row["loss"][0], row["accuracy"][0]) for row in mine[:4]}
        assert len(made) == 4
    assert "Verdict: " in capsys.readouterr().out
    assert (tmp_path / "regularisation.png").exists()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_the_learning_rate_falls_to_zero():
    config = study.Regularisation(steps=4, hidden=(5,), dropout=(0.0, 0.4))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(4, 6)).astype(np.float32),
        "label": rng.integers(10, size=4),
    }
    run = study._runs(config, pixels=6)[0]
    states = run.init(jax.random.key(0))
    rates = []
    for _ in range(4):
        states = run.step(states, batch)
        rates.append(states["state"].opt_state.hyperparams["learning_rate"][0])
    np.testing.assert_allclose(rates, [0.1, 0.075, 0.05, 0.025])


def test_some_runs_have_fixed_batches():
    runs = study._runs(study.Regularisation(), pixels=4)
    assert [run.fixed for run in runs] == [False, False, True, True]


def test_the_loss_in_float64():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 6)).astype(np.float32)
    labels = rng.integers(10, size=4)
    model = fully_connected.FullyConnected((5,), "relu", None)
    params = model.init(jax.random.key(0), images, train=False)["params"]
    batch = {"image": images, "label": labels, "dropout": 0.0, "l2": 0.3}
    made = model.apply(
        {"params": params}, batch, True, method=study.loss_fn,
        rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    first, last = (np.float64(params[f"Dense_{i}"]["kernel"]) for i in range(2))
    logits = np.maximum(np.float64(images) @ first, 0) @ last
    losses = np.log(np.exp(logits).sum(1)) - logits[range(4), labels]
    penalty = 0.15 * (np.sum(first**2) + np.sum(last**2))
    np.testing.assert_allclose(made["loss"], losses + penalty, rtol=1e-5)  # Float32.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": (0.1,)}, r"`dropout` must be two shares or more in \[0, 1\)"),
        ({"dropout": (0.0, 1.0)}, r"`dropout` must be two shares or more in \[0, 1\)"),
        ({"l2": 0.0}, "`l2` must be positive and finite, got 0.0"),
        ({"examples": 10}, "`examples` must be at least 32, got 10"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.Regularisation(**options))
