"""`diagnose`: every call of a layer, its numbers, and the advice."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen
from jaxbn.models import _diagnose

RNG = np.random.default_rng(0)
X = (1 + 2 * RNG.standard_normal((64, 3))).astype(np.float32)
MASK = RNG.random((64, 3)) < 0.7
STATS = jaxbn.BatchStats(jnp.array([0.0, 1.0, 4.0]), jnp.array([1.0, 9.0, 4.0]))


def train(model, batch):
    return model(*batch)


def run(model, x):
    return model(x)


class Net(nn.Module):
    """A network that calls one layer twice, and then a layer of Flax."""

    @nn.compact
    def __call__(self, x, mask):
        twice = linen.BatchNorm(False, momentum=0.5, name="twice")
        x = twice(3 * twice(x, mask=mask) ** 2, mask=mask)
        return nn.BatchNorm(name="theirs")(x, False, mask=mask)


class Model(nnx.Module):
    """`Net` as an NNX model."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.twice = jaxbn.nnx.BatchNorm(3, momentum=0.5, rngs=rngs)
        self.theirs = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x, mask):
        x = self.twice(3 * self.twice(x, mask=mask) ** 2, mask=mask)
        return self.theirs(x, mask=mask)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_every_call_is_diagnosed_in_order(kind):
    if kind == "linen":
        variables = Net().init(jax.random.key(0), X, MASK)
        found = jaxbn.diagnose(Net(), variables, (X, MASK), train)
    else:
        found = jaxbn.diagnose(Model(), None, (X, MASK), train)
    x = np.where(MASK, X, np.nan).astype(np.float64)

    def normalized(x):
        return (x - np.nanmean(x, 0)) / np.sqrt(np.nanvar(x, 0) + 1e-5)

    second = 3 * normalized(x) ** 2
    inputs = [("twice", 1, x), ("twice", 2, second), ("theirs", 1, normalized(second))]
    for row, (path, call, each) in zip(found.layers, inputs, strict=True):
        assert (row.path, row.call) == (path, call)
        # All running means are those before the pass, 0: the first call moves them.
        expected = np.abs(np.nanmean(each, 0))
        np.testing.assert_allclose(row.mean_distances, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row.variance_ratios, np.nanvar(each, 0), rtol=1e-4)


def test_linen_and_nnx_agree_and_no_model_changes():
    variables = Net().init(jax.random.key(0), X, MASK)
    before = jax.tree.map(np.array, variables)
    expected = jaxbn.diagnose(Net(), variables, (X, MASK), train)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    model = Model()
    model.eval()  # `diagnose` runs a copy in training mode.
    graph, state = nnx.split(model)
    before = jax.tree.map(np.array, state)
    assert str(jaxbn.diagnose(model, None, (X, MASK), train)) == str(expected)
    assert nnx.graphdef(model) == graph
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_the_table_has_a_row_for_each_call():
    layer = linen.BatchNorm(False, name="bn")
    variables = layer.init(jax.random.key(0), X)
    found = jaxbn.diagnose(layer, variables, X, lambda bn, x: (bn(x), bn(7 + x)))
    expected = [np.abs(X.mean(0)).max(), (7 + X.mean(0)).max()]
    distances = [row.mean_distance for row in found.layers]
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    header, first, second, _, *advice = str(found).splitlines()
    assert header.split()[:3] == ["layer", "channels", "elements"]
    assert first.split()[:3] == ["bn", "3", "64"]
    assert second.startswith("bn (call 2)  3")
    assert any(line.startswith("bn (call 2): the running stat") for line in advice)


def test_a_subclass_without_parameters():
    class Own(jaxbn.nnx.BatchNorm):
        def __call__(self, x, **options):
            return super().__call__(x, **options)

    layer = Own(3, use_scale=False, use_bias=False)
    (row,) = jaxbn.diagnose(layer, None, X, lambda bn, x: bn(x, mask=MASK)).layers
    assert row.path == "Own"
    assert str(row) == str(
        diagnosis(X, MASK, jaxbn.init_batch_stats(3))._replace(path="Own")
    )


def diagnosis(x=X, mask=None, stats=STATS, scale=None, bias=None, axis=-1):
    options = {"axis": axis, "epsilon": 1e-5}
    return _diagnose.diagnose_call(x, mask, stats, scale, bias, **options)


def test_numbers_are_those_of_the_valid_elements():
    """Each channel has a mask of its own, and rubbish where it is False."""
    scale, bias = np.array([0.0, 2.0, 3.0]), np.array([0.0, -1.0, 1.0])
    row = diagnosis(np.where(MASK, X, np.inf), MASK, scale=scale, bias=bias)
    assert row.elements == MASK.sum(0).min()
    distances, ratios, shifts = [], [], []
    for c in range(3):
        x = X[MASK[:, c], c].astype(np.float64)
        mean, std = float(STATS.mean[c]), np.sqrt(float(STATS.var[c]) + 1e-5)
        distances.append(abs(x.mean() - mean) / std)
        ratios.append((x.var() + 1e-5) / std**2)
        trained = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        shifts.append(scale[c] * (trained - (x - mean) / std))
    # The moments are float32.
    np.testing.assert_allclose(row.mean_distances, distances, rtol=1e-5)
    np.testing.assert_allclose(row.variance_ratios, ratios, rtol=1e-5)
    assert row.mean_distance == np.max(row.mean_distances)
    assert row.variance_ratio == pytest.approx(max(*ratios, *np.divide(1, ratios)))
    shift = np.sqrt(np.mean(np.concatenate(shifts) ** 2))
    assert row.output_shift == pytest.approx(shift, rel=1e-5)


def test_a_channel_without_elements_counts_nothing():
    mask = MASK.copy()
    mask[:, 2] = False
    row = diagnosis(X, mask)
    assert row.elements == 0
    assert np.isnan([row.mean_distances[2], row.variance_ratios[2]]).all()
    assert row.mean_distance == np.max(row.mean_distances[:2])
    assert (row.dead, row.negative, row.saturated, row.ill_conditioned) == (0,) * 4
    nothing = diagnosis(X, np.zeros_like(MASK))
    assert (nothing.mean_distance, nothing.output_shift) == (0, 0)
    assert nothing.variance_ratio == 1
    assert len(nothing.advice) == 1  # To give a larger batch.
    assert "1 elements per channel have no variance" in diagnosis(X[:1]).advice[0]


def test_masked_elements_hide_no_finding():
    """A channel is constant where it counts, saturated where it counts."""
    mask = np.broadcast_to(np.arange(64)[:, None] < 40, X.shape)
    x = X.copy()
    x[:40, 0] = 3.0
    row = diagnosis(x, mask, scale=np.array([1.0, 99.0, 1.0]), bias=np.full(3, -0.0))
    # The constant output is 0, which a ReLU does not change.
    assert (row.dead, row.negative, row.saturated) == (1, 1, 1)


def test_several_channel_axes_and_complex_inputs():
    x = X.reshape(16, 3, 4)[:, :, :2]
    stats = jaxbn.BatchStats(np.zeros((3, 2)), np.ones((3, 2)))
    row = diagnosis(x, axis=(2, 1), stats=stats)
    assert (row.channels, row.elements) == (6, 16)
    expected = np.abs(x.astype(np.float64).mean(0)).ravel()
    np.testing.assert_allclose(row.mean_distances, expected, rtol=1e-4)
    x = (X + 1j * X[::-1]).astype(np.complex64)
    stats = jaxbn.BatchStats(jnp.zeros(3, jnp.complex64), jnp.ones(3))
    row = diagnosis(x, stats=stats)
    x = x.astype(np.complex128)
    expected = np.abs(x.mean(0)) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(row.mean_distances, expected, rtol=1e-5)
    np.testing.assert_allclose(row.variance_ratios, x.var(0), rtol=1e-4)


MANY = np.random.default_rng(0).standard_normal((256, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "field", "number", "advice"),
    [
        ({}, "dead", 0, None),
        ({"cls": nn.BatchNorm}, "negative", 0, None),
        ({"scale": (1, 0, 1)}, "dead", 1, "constant"),
        ({"bias": (0, -9, -9)}, "negative", 2, "ReLU"),
        ({"scale": (99, 1, 1)}, "saturated", 1, "sigmoid"),
        ({"x": MANY + np.float32([0, 0, 1e4])}, "ill_conditioned", 1, "centre the"),
        ({"x": MANY[:8]}, "elements", 8, "are few"),
        ({"shift": 2.0}, "dead", 0, "recalibrate"),
    ],
)
def test_findings(options, field, number, advice):
    """Each finding on a layer that is made to show it, and none on a healthy one."""
    given = {"x": MANY, "cls": linen.BatchNorm, "scale": (1, 1, 1), "bias": (0, 0, 0)}
    given |= {"shift": 0.0} | options
    layer, x = given["cls"](False, name="bn"), given["x"]
    variables = {
        "params": {name: jnp.array(given[name], float) for name in ("scale", "bias")},
        "batch_stats": {"mean": x.mean(0) - given["shift"], "var": x.var(0)},
    }
    (row,) = jaxbn.diagnose(layer, variables, x, run).layers
    assert getattr(row, field) == number
    assert (advice is None) == (row.advice == ())
    assert advice is None or any(advice in text for text in row.advice)


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.jit(linen.BatchNorm)(False, name="bn")(x)


class NnxJitted(nnx.Module):
    def __init__(self):
        self.bn = jaxbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.jit(lambda bn, x: bn(x))(self.bn, x)


def test_errors():
    variables = Jitted().init(jax.random.key(0), X)
    for model, given in ((Jitted(), variables), (NnxJitted(), None)):
        with pytest.raises(ValueError, match=r"outside of `jit`.* of 'bn'"):
            jaxbn.diagnose(model, given, X, run)
        with pytest.raises(ValueError, match="must run a layer of `BatchNorm`"):
            jaxbn.diagnose(model, given, X, lambda model, x: x)
    for model, given in ((Jitted(), None), (NnxJitted(), variables)):
        with pytest.raises(ValueError, match="`variables` must be all that"):
            jaxbn.diagnose(model, given, X, run)
