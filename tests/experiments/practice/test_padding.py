import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.practice.padding import networks, report, sequences, study

RNG = np.random.default_rng(0)
LENGTHS = np.array([2, 6, 3, 4, 5])
MASK = np.arange(6)[None] < LENGTHS[:, None]
X = np.where(MASK[..., None], RNG.normal(size=(5, 6, 3)), 0).astype(np.float32)
RUBBISH = np.where(MASK[..., None], X, 99).astype(np.float32)


def trained(model, x):
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    return model.apply(variables, x, MASK, train=True, mutable=["batch_stats"])


EXHAUSTIVE = pytest.mark.exhaustive


@pytest.mark.first_case
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(networks.FeedForward("masked BN", 4, 6), id="masked"),
        pytest.param(networks.FeedForward("Layer Norm", 4, 6), id="layer norm"),
        pytest.param(
            networks.Recurrent("masked BN", True, 4), id="recurrent", marks=EXHAUSTIVE
        ),
        pytest.param(
            networks.Recurrent("masked BN", False, 4), id="shared", marks=EXHAUSTIVE
        ),
    ],
)
def test_rubbish_in_the_padding_changes_nothing(model):
    made, expected = trained(model, RUBBISH), trained(model, X)
    chex.assert_trees_all_close(made, expected, rtol=1e-6, atol=1e-6)


def test_over_padding_it_does():
    model = networks.FeedForward("BN over padding", 4, 6)
    assert np.abs(trained(model, RUBBISH)[0] - trained(model, X)[0]).max() > 0.01


@pytest.mark.exhaustive
def test_statistics_per_time_step_against_float64():
    model = networks.Recurrent("masked BN", True, 4)
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    _, new = model.apply(variables, X, MASK, train=True, mutable=["batch_stats"])
    dense = variables["params"]["_Cell_0"]["Dense_1"]
    u = np.float64(X) @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
    found = new["batch_stats"]["_Cell_0"]["Norm_1"]["BatchNorm_0"]
    for step in range(6):
        valid = u[MASK[:, step], step]
        if len(valid) < 2:  # Nothing is learned of a variance.
            np.testing.assert_array_equal(found["var"][step], 1)
            continue
        mean, var = 0.1 * valid.mean(0), 0.9 + 0.1 * valid.var(0, ddof=1)
        np.testing.assert_allclose(found["mean"][step], mean, atol=1e-6)
        np.testing.assert_allclose(found["var"][step], var, rtol=1e-5)


@pytest.mark.exhaustive
def test_shared_statistics_have_one_row():
    model = networks.Recurrent("masked BN", False, 4)
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    chex.assert_shape(jax.tree.leaves(variables["batch_stats"]), (4,))
    assert model.apply(variables, X, MASK, train=False).shape == (5, 10)


def test_the_state_stays_after_the_last_row():
    model = networks.Recurrent("none", True, 4)
    variables = model.init(jax.random.key(0), X, MASK, train=False)
    whole = model.apply(variables, X, MASK, train=False)
    short = model.apply(variables, X[:, :2], jnp.ones((5, 2), bool), train=False)
    np.testing.assert_allclose(whole[0], short[0], rtol=1e-5, atol=1e-6)


ACCURACY = {"none": 0.5, "BN over padding": 0.6, "masked BN": 0.7, "Layer Norm": 0.65}


def result(accuracy=(), change=()):
    values = {
        f"{network}, {kind}": each
        for network in ("feed-forward", "recurrent")
        for kind, each in ACCURACY.items()
    }
    values |= {"recurrent, masked BN, shared": 0.6} | dict(accuracy)
    changes = {"feed-forward, BN over padding": 0.5} | dict(change)
    networks = {
        name: {
            "accuracy": [[0.1, 0.1], [value, value]],
            "short": [[0.1, 0.1], [value, value]],
            "change": [[0.0, 0.0], [changes.get(name, 0.0)] * 2],
        }
        for name, value in values.items()
    }
    return {
        "options": {"seeds": 2},
        "step": [1, 2],
        "padding": 0.3,
        "networks": networks,
    }


def test_holds():
    assert report.verdict(result()) == "holds"
    assert "30% of the rows are padding" in report.table(result())


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"change": {"feed-forward, BN over padding": 0.0}}, 0),
        ({"change": {"feed-forward, masked BN": 0.1}}, 1),
        ({"change": {"recurrent, BN over padding": 0.1}}, 2),
        ({"accuracy": {"feed-forward, masked BN": 0.55}}, 3),
        ({"accuracy": {"recurrent, BN over padding": 0.75}}, 4),
        ({"accuracy": {"recurrent, masked BN, shared": 0.75}}, 5),
    ],
)
def test_holds_partly(changed, place):
    found = result(**changed)
    assert list(report.statements(found).values()) == [i != place for i in range(6)]
    assert report.verdict(found) == "holds partly"


def test_a_network_that_diverged():
    found = result(accuracy={"feed-forward, none": None})
    assert "0.0000 ± 0.0000" in report.table(found)


IMAGES = np.random.default_rng(0).integers(1, 256, (40, 8, 8, 1)).astype(np.uint8)


def test_rows_up_to_the_length_and_zeros_beyond():
    made = sequences.from_images(IMAGES, 3, seed=0)
    assert made["image"].shape == (40, 8, 8)
    assert set(made["length"]) == set(range(3, 9))
    for image, x, length in zip(IMAGES, made["image"], made["length"], strict=True):
        np.testing.assert_allclose(x[:length], image[:length, :, 0] / 255, rtol=1e-6)
        assert not x[length:].any()
    again = sequences.from_images(IMAGES, 3, seed=1)
    assert not np.array_equal(made["length"], again["length"])


def test_large_images_are_halved():
    large = np.repeat(np.repeat(IMAGES, 2, 1), 2, 2)
    made = sequences.from_images(large, 3, seed=0)
    expected = sequences.from_images(IMAGES, 3, seed=0)
    np.testing.assert_allclose(made["image"], expected["image"], rtol=1e-6)


def test_mask_and_more_padding():
    made = {"image": jnp.ones((2, 3, 4)), "length": jnp.array([1, 3])}
    expected = np.array([[True, False, False], [True, True, True]])
    np.testing.assert_array_equal(sequences.mask(made), expected)
    longer = sequences.longer(made, 2)
    assert longer["image"].shape == (2, 6, 4)
    assert not longer["image"][:, 3:].any()
    np.testing.assert_array_equal(sequences.mask(longer)[:, :3], expected)
    assert not sequences.mask(longer)[:, 3:].any()


@pytest.mark.exhaustive
def test_nine_networks():
    names = [run.name for run in study._runs(study.Padding(), rows=8, features=8)]
    assert len(set(names)) == 9
    assert "recurrent, masked BN, shared" in names
