import numpy as np
import pytest
import sklearn.datasets
import sklearn.preprocessing

from experiments.practice.feature_scaling import quadratic, report, study

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, (1.0, 3.0), (50, 2))
Y = (X @ [[1.0, 0.5], [-0.2, 1.0]]) + RNG.normal(size=(50, 2))


def descent(steps):
    """The loss after each step of gradient descent, float64."""
    inputs = np.concatenate([X, np.ones((50, 1))], 1)
    hessian = inputs.T @ inputs / 50
    rate = 1 / np.linalg.eigvalsh(hessian)[-1]
    w, losses = np.zeros((3, 2)), []
    for _ in range(steps + 1):
        losses.append(np.sum((inputs @ w - Y) ** 2))
        w = w - rate * inputs.T @ (inputs @ w - Y) / 50
    best = np.linalg.lstsq(inputs, Y)[0]
    lowest = np.sum((inputs @ best - Y) ** 2)
    return (np.array(losses) - lowest) / (losses[0] - lowest)


def test_condition_number():
    inputs = np.concatenate([X, np.ones((50, 1))], 1)
    expected = np.linalg.cond(inputs) ** 2
    found = quadratic.condition_number(quadratic.spectrum(X, Y))
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_excess_is_that_of_gradient_descent():
    found = quadratic.spectrum(X, Y)
    excess = [quadratic.excess_after(found, step) for step in range(30)]
    np.testing.assert_allclose(excess, descent(29), rtol=1e-6)


@pytest.mark.parametrize("tolerance", [0.5, 0.01, 1e-4])
def test_steps_to_a_loss(tolerance):
    losses = descent(2000)
    expected = int(np.flatnonzero(losses <= tolerance)[0])
    assert quadratic.steps_to(quadratic.spectrum(X, Y), tolerance) == expected


def test_a_feature_that_does_not_vary_is_left_out():
    more = np.concatenate([X, np.full((50, 1), 7.0)], 1)
    found = quadratic.spectrum(more, Y)
    assert len(found.eigenvalues) == 3
    assert np.isfinite(quadratic.condition_number(found))


def test_the_bowl():
    y = Y[:, 0]
    found = quadratic.bowl(X, y, steps=400)
    inputs = np.concatenate([X, np.ones((50, 1))], 1)
    best = np.linalg.lstsq(inputs, y)[0][:2]
    np.testing.assert_allclose(found.optimum, best, rtol=1e-8)
    assert found.path.shape == (401, 2)
    np.testing.assert_array_equal(found.path[0], 0)
    np.testing.assert_allclose(found.path[-1], best, rtol=1e-6)
    distances = np.linalg.norm(found.path - best, axis=1)
    assert np.all(np.diff(distances) <= 1e-12)


STEPS = {"none": 1_000_000, "min-max": 1000, "z-score": 100, "BN first": 101}


def result(**changed):
    rows = [
        {"table": table, "scaling": scaling, "condition": 2.0 * steps, "steps": steps}
        for table in ("iris", "wine")
        for scaling, steps in STEPS.items()
    ]
    for row in rows:
        if row["table"] == "wine" and row["scaling"] in changed:
            row["steps"] = changed[row["scaling"]]
    return {
        "options": {"tolerance": 0.01},
        "rows": rows,
        "smallest_variance": {"iris": 0.1, "wine": 1e-5},
    }


def test_holds():
    assert report.slope(result()) == pytest.approx(1)
    assert report.verdict(result()) == "holds"
    text = report.table(result())
    assert "power of 1.00" in text
    assert "1,000,000" in text
    assert "until 99%" in text


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"min-max": 2_000_000}, 0),
        ({"z-score": 1001, "BN first": 1001}, 1),
        ({"BN first": 120}, 2),
    ],
)
def test_holds_partly(changed, place):
    found = list(report.statements(result(**changed)).values())
    assert found == [i != place for i in range(4)]
    assert report.verdict(result(**changed)) == "holds partly"


def test_steps_that_do_not_grow():
    flat = result()
    for row in flat["rows"]:
        row["steps"] = 7
    assert not list(report.statements(flat).values())[3]


@pytest.mark.exhaustive
def test_scalings():
    x = sklearn.datasets.load_wine().data
    minmax = sklearn.preprocessing.MinMaxScaler().fit_transform(x)
    standard = sklearn.preprocessing.StandardScaler().fit_transform(x)
    np.testing.assert_allclose(study.min_max(x), minmax)
    np.testing.assert_allclose(study.z_score(x), standard)
    # Float32, and an epsilon of 1e-5 beside the smallest variance, .015.
    np.testing.assert_allclose(study.batch_norm(x), standard, rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
def test_targets():
    iris, diabetes = (study.targets(study.TABLES[n]()) for n in ("iris", "diabetes"))
    assert iris.shape == (150, 3)
    assert diabetes.shape == (442, 1)
    for y in (iris, diabetes):
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(y.std(0), 1)
