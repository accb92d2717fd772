"""Variants for models that exist already: other layers stay as they are."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen, variants
from jaxbn import nnx as jaxbn_nnx

RNG = np.random.default_rng(0)
X = jnp.asarray(3 + 2 * RNG.standard_normal((16, 4)), jnp.float32)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(6)(x)
        x = nn.relu(linen.BatchNorm(name="first")(x, use_running_average=not train))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = linen.BatchNorm(name="second")(x, use_running_average=not train)
        return nn.Dense(3)(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 6, rngs=rngs)
        self.first = jaxbn_nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = jaxbn_nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.first(self.dense(x))))
        return self.head(self.second(x))


NET = Net()
VARIABLES = NET.init(jax.random.key(0), X, False)


def evaluate(variables, x):
    return NET.apply(variables, x, False)


def by_hand(x, adapted=("first", "second")):
    """Evaluation in which these layers take the statistics of the batch."""
    params, stats = VARIABLES["params"], VARIABLES["batch_stats"]

    def norm(name, x):
        mean, var = stats[name]["mean"], stats[name]["var"]
        if name in adapted:
            mean, var = x.mean(0), x.var(0)
        return (x - mean[None]) / jnp.sqrt(var + 1e-5)[None]

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"][None]

    x = nn.relu(norm("first", dense("Dense_0", x)))
    return dense("Dense_1", norm("second", x))


@pytest.mark.parametrize("jitted", [False, True])
def test_linen(jitted):
    inner = jax.jit(evaluate) if jitted else evaluate
    before = inner(VARIABLES, X)  # A trace that must not be used again.
    run = variants.with_variant(inner, variants.TestTime())
    chex.assert_trees_all_close(run(VARIABLES, X), by_hand(X), rtol=1e-4, atol=1e-4)
    part = variants.with_variant(inner, variants.TestTime(), "second")
    chex.assert_trees_all_close(
        part(VARIABLES, X), by_hand(X, ["second"]), rtol=1e-4, atol=1e-4
    )
    chex.assert_trees_all_close(inner(VARIABLES, X), before)
    chex.assert_trees_all_close(run(VARIABLES, X), jax.jit(run)(VARIABLES, X))


def test_nnx():
    model = NnxNet(nnx.Rngs(0))
    nnx.update(model.dense, nnx.state(nnx.Linear(4, 6, rngs=nnx.Rngs(1))))
    model.eval()
    new = variants.with_variant(model, variants.TestTime(), "first")
    assert model.first.variant is None
    assert new.second.variant is None
    model.first.train()
    chex.assert_trees_all_close(new(X), model(X), rtol=1e-5, atol=1e-5)


class Doubling(linen.BatchNorm):
    """A subclass with a `__call__` of its own and other arguments."""

    @nn.compact
    def __call__(self, x, train):
        return super().__call__(2 * x, use_running_average=not train) + 1


def test_subclasses_and_nested_variants():
    layer = Doubling()
    variables = layer.init(jax.random.key(0), X, True)

    def run(variables, x):
        return layer.apply(variables, x, False)

    same = variants.with_variant(run, variants.TestTime(1e30))
    chex.assert_trees_all_close(same(variables, X), run(variables, X), rtol=1e-5)
    inner = variants.with_variant(run, variants.TestTime(3.0))
    both = variants.with_variant(inner, variants.TestTime())
    chex.assert_trees_all_close(both(variables, X), inner(variables, X))
    assert not np.allclose(inner(variables, X), run(variables, X))


def test_a_policy_gives_way():
    policy = jaxbn.sync.Stale()
    layer = linen.BatchNorm(use_running_average=True, axis_name="d", sync=policy)
    variables = layer.init(jax.random.key(0), X)
    run = variants.with_variant(layer.apply, variants.TestTime())
    right = (X - X.mean(0)[None]) / X.std(0)[None]
    chex.assert_trees_all_close(run(variables, X), right, atol=1e-4)
    model = jaxbn_nnx.BatchNorm(4, sync=policy, rngs=nnx.Rngs(0))
    model.eval()
    new = variants.with_variant(model, variants.TestTime())
    chex.assert_trees_all_close(new(X), right, atol=1e-4)


def test_another_variant_begins_with_a_state_of_its_own():
    model = jaxbn_nnx.BatchNorm(4, variant=variants.Renorm(), rngs=nnx.Rngs(0))
    model(X)
    kept = jaxbn.replace(model, momentum=0.5)
    assert int(kept.steps[...]) == 1
    for variant in (variants.MovingAverage(4), variants.MovingAverage(8)):
        model = jaxbn.replace(model, variant=variant)
        assert int(model.steps[...]) == 0
        assert model.squares.shape == (4, variant.window - 1)
        model(X)
    stats = jaxbn.init_batch_stats(4, variant=variants.MovingAverage(4))
    with pytest.raises(ValueError, match="of shapes"):
        jaxbn.batch_norm_train(X, None, None, stats, variant=variant)


def test_stacked_layers_take_a_variant():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return jaxbn_nnx.BatchNorm(4, rngs=rngs)

    stack = make(nnx.Rngs(0))
    new = variants.with_variant(stack, variants.Renorm())
    assert new.steps.shape == (3,)
    run = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
    assert run(new, X).shape == (3, *X.shape)


def test_initialisation_needs_no_axis():
    layer = linen.BatchNorm(
        use_running_average=True, variant=variants.TestTime(axis_name="d")
    )
    assert layer.init(jax.random.key(0), X)


def test_entropy_of_ruled_out_classes():
    logits = jnp.array([[0.0, 1.0, -jnp.inf]])
    value, grad = jax.value_and_grad(lambda x: variants.entropy(x).sum())(logits)
    right = entropy_by_hand(logits[:, :2])
    chex.assert_trees_all_close(value, right, rtol=1e-5)
    chex.assert_tree_all_finite(grad)


def test_errors():
    class WithFlax(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(x)

    net = WithFlax()
    given = net.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="`where` must match a layer"):
        variants.with_variant(net.apply, variants.TestTime())(given, X)
    with pytest.raises(ValueError, match="Flax's"):
        variants.with_variant(net.apply, variants.TestTime(), "*")(given, X)
    folded, _ = jaxbn.fold(NET, VARIABLES, X, lambda model, x: model(x, False))
    with pytest.raises(ValueError, match="is folded"):
        variants.with_variant(evaluate, variants.TestTime())(folded, X)
    inner = jax.jit(lambda variables, x: NET.apply(variables, x, False))
    wrong = variants.with_variant(inner, variants.TestTime(), "third")
    for _ in range(2):  # The second call finds a trace.
        with pytest.raises(ValueError, match="`where` must match"):
            wrong(VARIABLES, X)
    with pytest.raises(TypeError, match="`target` must be"):
        variants.with_variant(NET, variants.TestTime())
    with pytest.raises(TypeError, match="`variant` must be"):
        variants.with_variant(evaluate, 3)
    with pytest.raises(ValueError, match="`where` must match"):
        variants.with_variant(evaluate, variants.TestTime(), "third")(VARIABLES, X)


def entropy_by_hand(logits):
    p = jax.nn.softmax(logits)
    return -jnp.mean(jnp.sum(p * jnp.log(p), -1))


def test_tent_on_linen():
    """The gradient is that of the entropy by scale and bias; nothing else changes."""
    tent = variants.make_tent(evaluate, optax.sgd(0.1))
    state = tent.init(VARIABLES)
    new, logits = tent.step(state, X)
    chex.assert_trees_all_close(logits, by_hand(X), rtol=1e-4, atol=1e-4)

    def loss(affine):
        params = {**VARIABLES["params"], **affine}
        run = variants.with_variant(evaluate, variants.TestTime())
        return entropy_by_hand(run({**VARIABLES, "params": params}, X))

    affine = {name: VARIABLES["params"][name] for name in ("first", "second")}
    grads = jax.grad(loss)(affine)
    right = jax.tree.map(lambda p, g: p - 0.1 * g, affine, grads)
    for name, value in new.variables["params"].items():
        wanted = right.get(name, VARIABLES["params"][name])
        chex.assert_trees_all_close(value, wanted, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal(new.variables["batch_stats"], VARIABLES["batch_stats"])
    for _ in range(20):
        state, after = tent.step(state, X)
    assert entropy_by_hand(after) < entropy_by_hand(logits)


def test_tent_on_nnx_equals_linen():
    model = NnxNet(nnx.Rngs(0))
    params, stats = VARIABLES["params"], VARIABLES["batch_stats"]
    for name, linen_name in (("dense", "Dense_0"), ("head", "Dense_1")):
        for part in ("kernel", "bias"):
            getattr(getattr(model, name), part)[...] = params[linen_name][part]
    assert set(stats) == {"first", "second"}
    adapted, optimizer = variants.nnx_tent(model, optax.adam(0.01))
    tent = variants.make_tent(evaluate, optax.adam(0.01))
    state = tent.init(VARIABLES)
    for _ in range(3):
        logits = variants.nnx_tent_step(adapted, optimizer, X)
        state, right = tent.step(state, X)
        chex.assert_trees_all_close(logits, right, rtol=1e-3, atol=1e-4)
    assert not np.any(model.first.mean[...])
    chex.assert_trees_all_equal(adapted.dense.kernel[...], params["Dense_0"]["kernel"])


def test_teacher_follows_parameters_and_statistics():
    student = NnxNet(nnx.Rngs(0))
    teacher = nnx.clone(student)
    student(X)
    old = nnx.state(teacher)
    new = variants.update_teacher(old, nnx.state(student), 0.9)
    nnx.update(teacher, new)
    chex.assert_trees_all_close(
        teacher.first.mean[...], 0.1 * student.first.mean[...], rtol=1e-5
    )
    # The state of the random stream is that of the student.
    assert int(teacher.dropout.rngs.count[...]) == int(student.dropout.rngs.count[...])
    steps = jaxbn.init_batch_stats(2, variant=variants.Renorm())
    later = steps._replace(variant={"steps": jnp.array(7)}, mean=jnp.ones(2))
    moved = variants.update_teacher(steps, later, 0.5)
    assert int(moved.variant["steps"]) == 7
    chex.assert_trees_all_close(moved.mean, jnp.full(2, 0.5))
    with pytest.raises(ValueError, match="same shapes"):
        variants.update_teacher(jnp.ones(2), jnp.ones(3))
