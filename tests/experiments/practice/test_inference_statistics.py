import copy

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.practice.inference_statistics import report, statistics, study

SEEDS = [0.9, 0.9]


def of_size(ratio=1.0, exact=0.9, ema=0.9):
    distances = {name: [[0.1, 0.2]] * 2 for name in ("mean", "var")}
    during = {
        name: {**{q: [v] for q, v in distances.items()}, "accuracy": [SEEDS]}
        for name in ("truth", "ema, biased", "debiased", "window", "cumulative",
                     "batch")
    }  # fmt: skip
    ratios = {"ratio": [[ratio, 1.0]] * 2}
    during["ema"] = copy.deepcopy(during["debiased"]) | {"accuracy": [[ema, ema]]}
    after = {
        name: distances | ratios | {"accuracy": [exact, exact]}
        for name in ("algorithm 2", "algorithm 2, biased")
    }
    return {"during": during, "after": after}


def result(**sizes):
    return {
        "options": {"seeds": 2},
        "step": [100],
        "sizes": {name[1:]: each for name, each in sizes.items()},
    }


def test_holds():
    found = result(m2=of_size(), m16=of_size(), m4=of_size())
    assert report.verdict(found) == "holds"
    text = report.table(found)
    assert text.startswith("Verdict: holds.")
    assert text.index("| 4 |") < text.index("| 16 |")  # Sorted as numbers.


@pytest.mark.parametrize(
    ("bad", "statement"),
    [
        (of_size(ratio=0.9), "with m / (m - 1) the variance is right"),
        (of_size(ema=0.88), "the moving average tracks the accuracy"),
        (of_size(exact=0.7), "the average over batches at fixed weights"),
    ],
)
def test_holds_partly(bad, statement):
    found = result(m2=bad, m8=of_size())
    assert report.verdict(found) == "holds partly"
    failed = {name: sizes for name, sizes in report.statements(found).items() if sizes}
    (name,) = failed
    assert name.startswith(statement)
    assert failed[name] == [2]
    assert "not at 2" in report.table(found)


def test_does_not_hold():
    bad = of_size(ratio=2.0, exact=0.5, ema=0.5)
    assert report.verdict(result(m2=bad)) == "does not hold here"


RNG = np.random.default_rng(0)
BATCHES = RNG.normal(3.0, 2.0, (7, 4, 5))  # Seven of four examples, five units.


def followed(window=3):
    estimators = statistics.all_estimators(0.9, window)
    own = [
        {"layer": {"mean": jnp.asarray(b.mean(0)), "var": jnp.asarray(b.var(0))}}
        for b in BATCHES
    ]
    states = statistics.init(estimators, own[0])
    for stats in own:
        states = statistics.update(estimators, states, stats, 4)
    return statistics.estimate(states)


def expected(name):
    mean, var = BATCHES.mean(1), BATCHES.var(1, ddof=1)
    if name == "cumulative":
        return mean.mean(0), var.mean(0)
    if name == "window":
        return mean[-3:].mean(0), var[-3:].mean(0)
    weights = 0.1 * 0.9 ** np.arange(6, -1, -1)
    if name == "debiased":
        weights /= weights.sum()
        return weights @ mean, weights @ var
    var = BATCHES.var(1) if name == "ema, biased" else var
    return weights @ mean, weights @ var + 0.9**7  # From variance 1.


@pytest.mark.first_case
@pytest.mark.parametrize(
    "name", ["ema", "ema, biased", "debiased", "window", "cumulative"]
)
def test_every_estimator_is_fed(name):
    found = followed()[name]["layer"]
    for quantity, value in zip(("mean", "var"), expected(name), strict=True):
        # Float32 rounding of seven updates.
        np.testing.assert_allclose(found[quantity], value, rtol=1e-5)


def test_distances():
    def stats(mean, var):
        return {"b": {"mean": jnp.array(mean), "var": jnp.array(var)}}

    found = statistics.distances(
        stats([1.0, 2.0], [4.0, 1.0]) | {"a": stats([0.0], [2.0])["b"]},
        stats([1.0, -2.0], [1.0, 4.0]) | {"a": stats([0.0], [2.0])["b"]},
    )
    np.testing.assert_allclose(found["mean"], [0, np.sqrt(((4 / 2) ** 2) / 2)])
    np.testing.assert_allclose(found["var"], [0, np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(found["ratio"], [1, (4 + 1 / 4) / 2])


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
