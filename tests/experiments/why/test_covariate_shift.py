import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.networks import norms
from experiments.why.covariate_shift import measures, noise, report, study

HESSIAN = np.diag([1.0, 2.0, 10.0])


def test_along_the_gradient_of_a_quadratic():
    start = np.array([3.0, -1.0, 0.5])
    gradient = HESSIAN @ start
    rates = np.array([0.01, 0.1, 0.3])

    def loss(x):
        return 0.5 * x @ jnp.asarray(HESSIAN, x.dtype) @ x

    found = measures.along_gradient(loss, jnp.asarray(start), jnp.asarray(rates))
    points = [start - rate * gradient for rate in rates]
    losses = [0.5 * x @ HESSIAN @ x for x in points]
    changes = [np.linalg.norm(HESSIAN @ x - gradient) for x in points]
    norm = np.linalg.norm(gradient)
    expected = {
        "loss_range": max(losses) - min(losses),
        "gradient_change": max(changes),
        "relative_change": max(changes) / norm,
        "smoothness": np.linalg.norm(HESSIAN @ gradient) / norm,
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)  # Float32.


def test_internal_shift_of_a_product():
    x, y, rate = 2.0, 1.0, 0.1
    first, second, third = 0.5, -1.0, 2.0

    def loss(params):
        product = x * jnp.prod(jnp.stack([p["kernel"] for p in params.values()]))
        return 0.5 * jnp.squeeze(product - y) ** 2

    params = {
        name: {"kernel": jnp.array([value])}
        for name, value in (("a", first), ("b", second), ("c", third))
    }
    found = measures.internal_shift(
        loss, params, rate, [["a"], ["b"], ["c"]], ["a", "b", "c"]
    )

    def gradients(a, b, c):
        error = x * a * b * c - y
        return np.array([error * x * b * c, error * x * a * c, error * x * a * b])

    before = gradients(first, second, third)
    a, b, _ = np.array([first, second, third]) - rate * before
    after = [
        before[0],
        gradients(a, second, third)[1],
        gradients(a, b, third)[2],
    ]
    distance = np.abs(after - before) / np.abs(before)
    np.testing.assert_allclose(found["distance"], distance, rtol=1e-5)
    np.testing.assert_allclose(found["cosine"], np.sign(after * before), rtol=1e-5)


def test_other_parts_of_a_layer_move_with_it():
    params = {
        "d0": {"kernel": jnp.array([1.0])},
        "n0": {"scale": jnp.array([1.0])},
        "d1": {"kernel": jnp.array([1.0])},
    }

    def loss(params):
        product = (
            params["d0"]["kernel"] * params["n0"]["scale"] * params["d1"]["kernel"]
        )
        return jnp.squeeze(product)

    found = measures.internal_shift(
        loss, params, 0.1, [["d0", "n0"], ["d1"]], ["d0", "d1"]
    )
    # The gradient of the last is the product of the first two, .9 each after a step.
    np.testing.assert_allclose(found["distance"], [0, 1 - 0.9**2], rtol=1e-5)


UNITS = 400


def test_its_means_and_scales():
    ones, zeros = (jnp.full((500, UNITS), value) for value in (1.0, 0.0))
    key = jax.random.key(0)
    shifts = noise.disturbed(key, zeros)  # Of the same key: the shift alone.
    scales = noise.disturbed(key, ones) - shifts
    # 400 units: standard errors of .015 and .004.
    means = shifts.mean(0)
    assert abs(means.mean()) < 0.06
    np.testing.assert_allclose(means.std(), 1 / np.sqrt(12), rtol=0.1)
    assert jnp.abs(shifts - means[None]).max() < 0.1 + 0.02
    means = scales.mean(0)
    np.testing.assert_allclose(means.mean(), 1.125, atol=0.02)
    np.testing.assert_allclose((scales - means[None]).std(), 0.1, rtol=0.05)


def test_the_layer():
    layer = noise.Noisy(norms.NoNorm)
    x = jnp.ones((4, 3))
    variables = layer.init(jax.random.key(0), x, use_running_average=True)
    still = layer.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(still, 1.125 * x)

    def noisy(seed):
        return layer.apply(
            variables, x, use_running_average=False,
            rngs={"dropout": jax.random.key(seed)},
        )  # fmt: skip

    assert not np.array_equal(noisy(0), noisy(1))
    np.testing.assert_array_equal(noisy(0), noisy(0))


def network(accuracy=0.9, movement=0.1, shift=0.2, change=0.5):
    def records(value):
        return np.full((8, 2), value).tolist()

    def by_layer(value):
        return np.full((8, 2, 3), value).tolist()

    return {
        "accuracy": records(accuracy),
        "movement": np.full((2, 3), movement).tolist(),
        "shift_distance": by_layer(shift),
        "shift_cosine": by_layer(0.5),
        **{
            name: records(change)
            for name in ("loss_range", "gradient_change", "relative_change",
                         "smoothness", "train_loss")
        },
    }  # fmt: skip


def result(**changed):
    networks = {
        "without BN": network(0.8, 0.3, 0.3, 0.9),
        "BN": network(),
        "noisy BN": network(0.7, 0.4),
        "noise without BN": network(0.1, 0.4),
    }
    for name, values in changed.items():
        networks[name.replace("_", " ")] = network(**values)
    return {"options": {"seeds": 2}, "networks": networks}


def test_the_paper_holds_where_jumps_cost_accuracy():
    assert report.verdict(result()) == "holds"
    assert list(report.later(result()).values()) == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"movement": 0.5}, 0),
        ({"shift": 0.5}, 1),
        ({"accuracy": 0.705}, 2),
    ],
)
def test_the_paper_holds_partly(changed, place):
    found = result(BN=changed)
    assert list(report.papers(found).values()) == [i != place for i in range(3)]
    assert report.verdict(found) == "holds partly"


def test_the_later_explanation():
    found = result(noisy_BN={"accuracy": 0.895, "movement": 0.9})
    assert all(report.later(found).values())
    assert "on smoothness instead: holds." in report.table(found)
    rough = result(BN={"change": 2.0})
    assert list(report.later(rough).values())[:2] == [False, False]


def test_values_that_are_not_finite():
    found = result()
    found["networks"]["without BN"]["loss_range"][0][0] = None
    assert "nan" in report.table(found)


@pytest.mark.exhaustive
def test_movement_in_widths_per_record():
    still = np.array([-1.0, 0.0, 1.0])
    # Two units: one still, one whose three percentiles move by .5 each record.
    units = np.stack(
        [np.stack([still, still + 0.5 * record], -1) for record in range(4)]
    )
    traces = units[:, None, None]
    np.testing.assert_allclose(study.movement(traces), [[np.median([0, 0.25])]])


@pytest.mark.exhaustive
def test_a_unit_without_width_is_no_error():
    assert np.isnan(study.movement(np.zeros((3, 1, 1, 3, 2)))).all()


@pytest.mark.exhaustive
def test_typical_unit():
    traces = np.random.default_rng(0).standard_normal((9, 3, 5))
    traces[:, :, 2] = np.median(traces, -1)
    np.testing.assert_array_equal(study.typical_unit(traces), traces[:, :, 2])


@pytest.mark.exhaustive
def test_parts_of_layers():
    params = ["Dense_0", "Dense_1", "Dense_10", "BatchNorm_0", "Noisy_1", "Dense_2"]
    assert study.layers_of(dict.fromkeys(params)) == [
        ["BatchNorm_0", "Dense_0"],
        ["Dense_1", "Noisy_1"],
        ["Dense_2"],
        ["Dense_10"],
    ]
