import jax
import numpy as np
import pytest

from experiments.networks import fully_connected
from experiments.practice.regularisation import report, study

ACCURACY = {  # By network, dropout, L2 and mini-batches.
    ("BN", 0.0, 0, "reshuffled"): 0.9,
    ("BN", 0.4, 0, "reshuffled"): 0.89,
    ("BN", 0.0, 0.001, "reshuffled"): 0.91,
    ("BN", 0.0, 0.005, "reshuffled"): 0.88,
    ("BN", 0.0, 0, "fixed"): 0.87,
    ("without BN", 0.0, 0, "reshuffled"): 0.85,
    ("without BN", 0.4, 0, "reshuffled"): 0.86,
    ("without BN", 0.0, 0.001, "reshuffled"): 0.85,
    ("without BN", 0.0, 0.005, "reshuffled"): 0.85,
    ("without BN", 0.0, 0, "fixed"): 0.85,
}


def result(changed=(), seeds=(0.01, -0.01)):
    rows = []
    for key, value in (ACCURACY | dict(changed)).items():
        network, dropout, l2, batches = key
        accuracy = [value + seed for seed in seeds]
        rows.append(
            {"network": network, "dropout": dropout, "l2": l2, "batches": batches,
             "accuracy": accuracy, "train_accuracy": [1.0], "loss": [0.1, None]}
        )  # fmt: skip
    about = {"dropout": [0.0, 0.4], "l2": 0.005, "steps": 1, "examples": 2, "seeds": 2}
    return {"options": about, "rows": rows}


def test_holds():
    assert report.verdict(result()) == "holds"
    assert "| +5.00 |" in report.table(result())


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        (("BN", 0.4, 0, "reshuffled"), 0.95, {1, 2}),
        (("BN", 0.0, 0.005, "reshuffled"), 0.92, {3}),
        (("BN", 0.0, 0, "fixed"), 0.91, {4, 5}),
        (("without BN", 0.0, 0, "fixed"), 0.80, {5}),
    ],
)
def test_holds_partly(key, value, place):
    found = result({key: value})
    failed = {i for i, each in enumerate(report.statements(found).values())
              if each.min() <= 0}  # fmt: skip
    assert failed == place
    assert report.verdict(found) == "holds partly"
    assert "| no | -" in report.table(found)


def test_every_seed_must_agree():
    found = result()
    row = report.row_of(found, "BN", dropout=0.0, l2=0.001, batches="reshuffled")
    row["accuracy"] = [0.8, 0.99]
    assert "| not in every seed |" in report.table(found)
    assert report.verdict(found) == "holds partly"


def test_a_row_that_is_missing():
    with pytest.raises(KeyError):
        report.row_of(result(), "BN", dropout=0.3)


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_some_runs_have_fixed_batches():
    runs = study._runs(study.Regularisation(), pixels=4)
    assert [run.fixed for run in runs] == [False, False, True, True]


@pytest.mark.exhaustive
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
