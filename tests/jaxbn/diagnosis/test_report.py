"""Each finding on a layer that is made to show it, and none on a healthy one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
import jaxbn.nnx
from jaxbn import linen

X = np.random.default_rng(0).standard_normal((256, 3)).astype(np.float32)


def train(model, x):
    return model(x, use_running_average=False)


def found(x=X, cls=linen.BatchNorm, scale=(1, 1, 1), bias=(0, 0, 0), stats=None):
    layer = cls(name="bn")
    variables = layer.init(jax.random.key(0), x, use_running_average=True)
    mean, var = (x.mean(0), x.var(0)) if stats is None else stats
    variables = {
        "params": {"scale": jnp.array(scale, float), "bias": jnp.array(bias, float)},
        "batch_stats": {"mean": jnp.array(mean), "var": jnp.array(var)},
    }
    return jaxbn.diagnose(layer, variables, x, train).layers[0]


@pytest.mark.parametrize("cls", [linen.BatchNorm, nn.BatchNorm])
def test_a_healthy_layer(cls):
    row = found(cls=cls)
    assert row.path == "bn"
    assert (row.channels, row.elements) == (3, 256)
    assert row.mean_distance < 1e-5
    assert row.variance_ratio == pytest.approx(1, abs=1e-5)
    assert row.output_shift < 1e-5
    assert (row.dead, row.negative, row.saturated, row.ill_conditioned) == (0, 0, 0, 0)
    assert row.advice == ()


def test_running_statistics_of_other_data():
    row = found(stats=(X.mean(0) - 2, 4 * X.var(0)))
    assert row.mean_distance == pytest.approx(1 / X.std(0).min(), rel=0.01)
    assert row.variance_ratio == pytest.approx(4, rel=1e-3)
    y = (X - X.mean(0)) / X.std(0)
    evaluated = (X - X.mean(0) + 2) / (2 * X.std(0))
    expected = np.sqrt(np.mean((y - evaluated) ** 2))
    assert row.output_shift == pytest.approx(expected, rel=1e-3)
    assert "recalibrate" in row.advice[0]


@pytest.mark.parametrize(
    ("options", "field", "number", "word"),
    [
        ({"scale": (1, 0, 1)}, "dead", 1, "constant"),
        ({"bias": (0, -9, -9)}, "negative", 2, "ReLU"),
        ({"scale": (99, 1, 1)}, "saturated", 1, "sigmoid"),
        ({"x": X + np.float32([0, 0, 1e4])}, "ill_conditioned", 1, "centre the input"),
        ({"x": X[:8]}, "elements", 8, "are few"),
    ],
)
def test_findings(options, field, number, word):
    row = found(**options)
    assert getattr(row, field) == number
    assert any(word in text for text in row.advice)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(linen.BatchNorm(name="first")(x, use_running_average=not train))
        return nn.BatchNorm(name="second", axis=1)(
            x[:, :, None], use_running_average=not train
        )


def test_a_model_in_words_and_unchanged():
    variables = Net().init(jax.random.key(0), X, train=False)
    before = jax.tree.map(np.array, variables)
    call = lambda model, x: model(5 + x, train=True)  # noqa: E731
    said = str(jaxbn.diagnose(Net(), variables, X, call))
    header, first, second, *rest = said.splitlines()
    assert header.split()[:3] == ["layer", "channels", "elements"]
    assert first.split()[:3] == ["first", "3", "256"]
    assert second.startswith("second")
    assert any(line.startswith("first: the running statistics") for line in rest)
    jax.tree.map(np.testing.assert_array_equal, dict(variables), before)
    # The second is given what the first makes of the batch.
    (_, row) = jaxbn.diagnose(Net(), variables, X, call).layers
    assert row.mean_distance == pytest.approx(0.4, abs=0.1)


class Model(nnx.Module):
    """`Net` in NNX."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = jaxbn.nnx.BatchNorm(3, rngs=rngs)
        self.second = nnx.BatchNorm(3, axis=1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x))[:, :, None])


def test_nnx_says_what_linen_says():
    variables = Net().init(jax.random.key(0), X, train=False)
    call = lambda model, x: model(5 + x, train=True)  # noqa: E731
    expected = jaxbn.diagnose(Net(), variables, X, call)
    model = Model()
    model.eval()  # It is put in training mode.
    found = jaxbn.diagnose(model, None, X, lambda model, x: model(5 + x))
    assert str(found) == str(expected)


def test_a_layer_called_twice_has_two_rows():
    layer = linen.BatchNorm(False, name="bn")
    variables = layer.init(jax.random.key(0), X)

    def call(model, x):
        return model(x), model(7 + x)

    found = jaxbn.diagnose(layer, variables, X, call)
    assert [row.mean_distance for row in found.layers] == pytest.approx(
        [np.abs(X.mean(0)).max(), (7 + X.mean(0)).max()], rel=1e-4
    )
    said = str(found)
    assert "bn (call 2)  3" in said
    assert "bn (call 2): the running statistics" in said


def test_errors():
    variables = Net().init(jax.random.key(0), X, train=False)
    for model, given in ((Net(), variables), (Model(), None)):
        with pytest.raises(ValueError, match="must run a layer of `BatchNorm`"):
            jaxbn.diagnose(model, given, X, lambda model, x: x)
    for model, given in ((Net(), None), (Model(), variables)):
        with pytest.raises(ValueError, match="`variables` must be all that"):
            jaxbn.diagnose(model, given, X, lambda model, x: x)
