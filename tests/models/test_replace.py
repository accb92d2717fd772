"""jaxbn's layers in the place of others: in an NNX model, and in Flax itself."""

import copy
import functools
import importlib.util
import pickle
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen, training
from jaxbn.models import _layers_by_path
from jaxbn.nnx import BatchNorm

FLAX_LINEN, FLAX_NNX = nn.BatchNorm, nnx.BatchNorm
X = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
BATCH = {"x": X, "y": np.arange(16) % 4}


class Net(nnx.Module):
    """Layers in a list, of Flax, and one in two places."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), BatchNorm(4, rngs=rngs)])
        self.flax = nnx.BatchNorm(4, rngs=rngs, momentum=0.7, axis=-1)
        self.twice = self.layers[1]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.twice(self.flax(x))


def test_options_of_all_layers():
    model = jaxbn.freeze(Net(), "layers")
    model(X)
    new = jaxbn.replace(model, momentum=0.5, unbiased=False, estimator="debiased")
    assert isinstance(new.flax, BatchNorm)
    assert new.twice is new.layers[1]
    assert new.twice.frozen == model.twice.frozen
    assert (new.flax.momentum, model.flax.momentum) == (0.5, 0.7)
    for ours, old in ((new.flax, model.flax), (new.twice, model.twice)):
        for name in ("mean", "var", "scale", "bias"):
            expected = getattr(old, name)[...]
            np.testing.assert_array_equal(getattr(ours, name)[...], expected)
    assert not jnp.any(new.flax.weight[...])  # The estimator's state begins anew.
    new(X)
    assert jnp.all(new.flax.var[...] != model.flax.var[...])
    new = jaxbn.replace(model, use_scale=False)
    assert new.flax.scale is None
    assert new.flax.bias is not None


def test_a_layer_of_flax_becomes_ours_as_it_is():
    model = Net()
    new = jaxbn.replace(model, where="flax", unbiased=False)
    assert new.flax.momentum == 0.7
    np.testing.assert_allclose(new(X), model(X), atol=1e-6)  # Another sum of squares.
    np.testing.assert_allclose(new.flax.var[...], model.flax.var[...], atol=1e-6)


def test_other_layers_by_path():
    paths = []

    def make(path, norm):
        paths.append(path)
        return nnx.GroupNorm(norm.num_features, num_groups=2, rngs=nnx.Rngs(0))

    new = jaxbn.replace(Net(), make, ["layers", "flax"])
    assert sorted(paths) == ["flax", "layers/1"]
    assert isinstance(new.layers[1], nnx.GroupNorm)
    assert new.twice is new.layers[1]
    assert new(X).shape == X.shape


def test_mistakes():
    class Own(BatchNorm):
        pass

    with pytest.raises(ValueError, match="`where` must match"):
        jaxbn.replace(Net(), momentum=0.5, where="encoder")
    with pytest.raises(ValueError, match="exclude each other"):
        jaxbn.replace(Net(), lambda path, norm: norm, momentum=0.5)
    with pytest.raises(ValueError, match="`num_features` must stay"):
        jaxbn.replace(Net(), num_features=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentun'"):
        jaxbn.replace(Net(), momentun=0.5)
    with pytest.raises(TypeError, match="`Own` is a class of its own"):
        jaxbn.replace(Own(3, rngs=nnx.Rngs(0)), momentum=0.5)
    with pytest.raises(TypeError, match="got Dense; a Linen model takes its layers"):
        jaxbn.replace(nn.Dense(3), momentum=0.5)


# The code of a package that knows nothing of jaxbn.
SOURCE = """
import functools
from typing import Any

from flax import linen as nn
from flax import nnx


class Net(nn.Module):
    norm: Any = functools.partial(
        nn.BatchNorm, use_running_average=None, momentum=0.9, epsilon=1e-5
    )

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x)
        x = nn.relu(self.norm(name="first")(x, use_running_average=not train))
        return self.norm(name="last")(nn.Dense(4)(x), use_running_average=not train)


class Model(nnx.Module):
    def __init__(self, rngs, norm=functools.partial(nnx.BatchNorm, momentum=0.9)):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.first = norm(4, rngs=rngs)
        self.head = nnx.Linear(4, 4, rngs=rngs)
        self.last = norm(4, rngs=rngs)

    def __call__(self, x):
        return self.last(self.head(nnx.relu(self.first(self.dense(x)))))


class Subclass(nn.BatchNorm):
    momentum: float = 0.5


class NnxSubclass(nnx.BatchNorm):
    pass
"""


def import_package():
    module = types.ModuleType("third_party")
    exec(SOURCE, vars(module))
    return module


@pytest.fixture(
    params=[
        "undone, with defaults",
        pytest.param("assigned", marks=pytest.mark.exhaustive),
        pytest.param("patched", marks=pytest.mark.exhaustive),
    ]
)
def package(request, monkeypatch):
    """The package, and the options with which its layers are made."""
    if request.param == "assigned":
        monkeypatch.setattr("flax.linen.BatchNorm", linen.BatchNorm)
        monkeypatch.setattr("flax.nnx.BatchNorm", BatchNorm)
        yield import_package(), {}
        return
    undone = request.param != "patched"
    options = {"unbiased": False} if undone else {}
    with jaxbn.patch_flax(**options) as patch:
        made = import_package()
        if undone:
            patch.undo()
        yield made, options


def train(model, x):
    return model(x, train=True)


def evaluate(model, x):
    return model(x, train=False)


def run(model, x):
    return model(x)


def loss_fn(model, batch, train):
    logits = model(batch["x"], train=train)
    return {"loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])}


def nnx_loss_fn(model, batch, train):
    return loss_fn(lambda x, train: model(x), batch, train)


def linen_results(net):
    """Returns the results of all tools for a network."""
    variables = net.init(jax.random.key(0), X, train=False)
    _, new = net.apply(variables, X, train=True, mutable=["batch_stats"])
    variables, parts = {**variables, **new}, [X[:4], X]
    _, moments = net.apply(variables, X, train=True, mutable=["batch_moments"])
    folded, report = jaxbn.fold(net, variables, X, evaluate)
    assert [row.outcome for row in report.layers] == ["folded", "folded"]

    def trained(loss_fn, **options):
        copied = jax.tree.map(jnp.copy, variables)  # A step donates its state.
        state = training.TrainState.create(net.apply, copied, optax.sgd(0.1))
        new, metrics = training.make_train_step(loss_fn, **options)(state, BATCH)
        return new.params, new.batch_stats, metrics

    return {
        "moved": new,
        "recalibrated": jaxbn.recalibrate(net, variables, parts, train),
        "diagnosis": jaxbn.diagnose(net, variables, X, train),
        "accumulated": jaxbn.end_accumulation(variables["batch_stats"], **moments),
        "folded": folded,
        "report": report,
        "trained": trained(loss_fn, micro_batches=4),
        "frozen": trained(jaxbn.freeze(loss_fn, "first", bias=False)),
    }


def nnx_results(model):
    """Returns the results of all tools for a model."""
    model(X)
    accumulated, trained = nnx.clone(model), nnx.clone(model)
    with jaxbn.accumulate(accumulated):
        accumulated(X[:4]), accumulated(X[4:])
    jaxbn.freeze(trained, "first", bias=False)
    optimizer = nnx.Optimizer(trained, optax.sgd(0.1), wrt=nnx.Param)
    training.make_nnx_train_step(nnx_loss_fn)(trained, optimizer, BATCH)
    replaced = jaxbn.replace(model, momentum=0.25)
    assert replaced.first.momentum == 0.25
    assert type(replaced.first) is BatchNorm
    folded, report = jaxbn.fold(model, None, X, run)
    assert [row.outcome for row in report.layers] == ["folded", "folded"]
    models = {
        "moved": model,
        "recalibrated": jaxbn.recalibrate(model, None, [X[:4], X], run),
        "accumulated": accumulated,
        "trained": trained,
        "replaced": replaced,
        "folded": folded,
    }
    return {
        **{name: nnx.to_pure_dict(nnx.state(each)) for name, each in models.items()},
        "replaced, later": replaced(X),
        "diagnosis": jaxbn.diagnose(model, None, X, run),
        "report": report,
    }


def check_equal(results, expected):
    for name in ("report", "diagnosis"):
        assert str(results.pop(name)) == str(expected.pop(name))
    chex.assert_trees_all_equal(results, expected)


@pytest.mark.exhaustive
def test_all_tools_on_linen(package):
    made, options = package
    norm = functools.partial(linen.BatchNorm, momentum=0.9, **options)
    check_equal(linen_results(made.Net()), linen_results(made.Net(norm=norm)))


@pytest.mark.exhaustive
def test_all_tools_on_nnx(package):
    made, options = package
    norm = functools.partial(BatchNorm, momentum=0.9, **options)
    model, ours = made.Model(nnx.Rngs(0)), made.Model(nnx.Rngs(0), norm)
    check_equal(nnx_results(model), nnx_results(ours))


def test_tools_still_know_the_layers_of_flax(package):
    net = nn.Sequential([FLAX_LINEN(True), linen.BatchNorm(True)])
    variables = net.init(jax.random.key(0), X)
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(FLAX_NNX(4, rngs=rngs), BatchNorm(4, rngs=rngs))
    for each, given in ((net, variables), (model, None)):
        report = jaxbn.fold(each, given, X, run).report
        assert [row.outcome for row in report.layers] == ["affine", "left"]
    for freeze in (
        jaxbn.freeze(lambda: net.apply(variables, X)),
        lambda: jaxbn.freeze(model),
    ):
        with pytest.raises(ValueError, match="got also Flax's"):
            freeze()
    with pytest.raises(ValueError, match="could not be collected"):
        jaxbn.recalibrate(model, None, [X], run)


def test_flax_is_known_whatever_was_patched_before_the_import(monkeypatch):
    for name in ("linen", "linen.normalization"):
        monkeypatch.setattr(f"flax.{name}.BatchNorm", linen.BatchNorm)
    for name in ("nnx", "nnx.nn.normalization"):
        monkeypatch.setattr(f"flax.{name}.BatchNorm", BatchNorm)
    spec = importlib.util.spec_from_file_location("anew", _layers_by_path.__file__)
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    assert list(anew.LINEN) == [linen.BatchNorm, FLAX_LINEN]
    assert list(anew.NNX) == [BatchNorm, FLAX_NNX]


def test_a_patch_lasts_until_it_is_undone():
    with jaxbn.patch_flax():
        assert (nn.BatchNorm, nnx.BatchNorm) == (linen.BatchNorm, BatchNorm)
        with pytest.raises(ZeroDivisionError), jaxbn.patch_flax(momentum=0.5):
            assert nn.BatchNorm().momentum == 1 / 0
        assert nn.BatchNorm is linen.BatchNorm
    assert (nn.BatchNorm, nnx.BatchNorm) == (FLAX_LINEN, FLAX_NNX)
    outer = jaxbn.patch_flax(momentum=0.5)
    inner = jaxbn.patch_flax(momentum=0.25)
    assert nn.BatchNorm().momentum == 0.25
    inner.undo()
    assert nnx.BatchNorm(3, rngs=nnx.Rngs(0)).momentum == 0.5
    for _ in range(2):
        outer.undo()
        assert (nn.BatchNorm, nnx.BatchNorm) == (FLAX_LINEN, FLAX_NNX)


def test_defaults_are_those_of_layers_made_without_them():
    groups = [[0, 1], [2, 3]]
    options = {"unbiased": False, "axis": [-1], "axis_index_groups": groups}
    with jaxbn.patch_flax(activation="relu", **options):
        layers = nn.BatchNorm(), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        others = (
            nn.BatchNorm(True, 1, unbiased=True),
            nnx.BatchNorm(3, axis=1, unbiased=True, rngs=nnx.Rngs(0)),
        )
        package = import_package()
    for layer in layers:
        assert (layer.unbiased, layer.activation) == (False, "relu")
        assert (layer.axis, layer.axis_index_groups) == ((-1,), ((0, 1), (2, 3)))
        assert layer.momentum == 0.99
    for layer in others:
        assert (layer.unbiased, layer.axis) == (True, 1)
    assert (package.Subclass().momentum, package.Subclass().unbiased) == (0.5, False)
    assert package.NnxSubclass(3, rngs=nnx.Rngs(0)).unbiased is False
    assert hash(layers[0]) is not None


def test_an_estimator_ignores_the_momentum_of_others_code():
    with jaxbn.patch_flax(estimator="cumulative"):
        given = {"momentum": 0.9}
        layers = nn.BatchNorm(**given), nnx.BatchNorm(4, **given, rngs=nnx.Rngs(0))
        package = import_package()
    assert [layer.momentum for layer in layers] == [0.99, 0.99]
    _, new = package.Net().init_with_output(jax.random.key(0), X, True)
    assert "weight" in new["batch_stats"]["first"]


def test_options_of_one_layer_and_of_none():
    metadata = {"note": "of the scale"}
    with jaxbn.patch_flax(scale_metadata=metadata, momentum=1.0):
        assert nn.BatchNorm().momentum == 1
        layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    assert layer.scale.get_metadata()["note"] == "of the scale"
    for name in ("momentun", "num_features", "rngs", "name", "parent"):
        with pytest.raises(TypeError, match=rf"'momentum'.*got \['{name}'\]"):
            jaxbn.patch_flax(**{name: 3})
    assert nn.BatchNorm is FLAX_LINEN


@pytest.mark.parametrize("options", [{}, {"unbiased": False, "dtype": jnp.bfloat16}])
def test_layers_and_models_are_copied(options):
    with jaxbn.patch_flax(**options):
        package = import_package()
        layer = nn.BatchNorm(momentum=0.5)
    for made in (layer, package.Net(), package.Subclass(axis=1)):
        # A `functools.partial`, the field of `Net`, is equal to itself only.
        assert repr(copy.deepcopy(made)) == repr(made)
    if not options:
        assert pickle.loads(pickle.dumps(layer)) == layer
    model = package.Model(nnx.Rngs(0))
    other = copy.deepcopy(model)
    assert type(other.first) is type(model.first)
    np.testing.assert_array_equal(other(X), nnx.clone(model)(X))


def test_code_that_was_imported_before_keeps_the_layer_of_flax():
    package = import_package()
    with jaxbn.patch_flax():
        assert package.Net().norm.func is FLAX_LINEN
        assert import_package().Net().norm.func is linen.BatchNorm
