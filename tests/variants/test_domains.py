"""Statistics for each domain, against layers that see one domain alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen, variants

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((8, 3, 4)), jnp.float32)
DOMAIN = jnp.array([0, 2, 1, 0, 2, 2, 0, 1])
DY = jnp.asarray(RNG.standard_normal(X.shape), jnp.float32)


def layer_of(**options):
    return variants.DomainBatchNorm(use_running_average=False, domains=3, **options)


@pytest.mark.first_case
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_each_domain_is_normalised_alone(shared, masked):
    layer = layer_of(shared=shared, activation="relu")
    variables = layer.init(jax.random.key(0), X, domain=DOMAIN)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)
    mask = jnp.arange(8)[:, None, None] != 4 if masked else None

    def apply(x, params):
        given = {**variables, "params": params}
        out = layer.apply(given, x, domain=DOMAIN, mask=mask, mutable=["batch_stats"])
        return out

    @jax.jit
    def run(x, params):
        y, pull, new = jax.vjp(apply, x, params, has_aux=True)
        return y, pull(DY), new["batch_stats"]

    y, (dx, dparams), new = run(X, variables["params"])
    single = linen.BatchNorm(use_running_average=False, activation="relu")
    total = jax.tree.map(jnp.zeros_like, variables["params"])
    for index in range(3):
        rows = np.flatnonzero(index == DOMAIN)
        name = f"domain_{index}"
        params = variables["params"] if shared else variables["params"][name]

        def alone(x, params, name=name, rows=rows):
            given = {"params": params, "batch_stats": variables["batch_stats"][name]}
            part = None if mask is None else mask[rows]
            return single.apply(given, x, mask=part, mutable=["batch_stats"])

        right, pull, stats = jax.vjp(alone, X[rows], params, has_aux=True)
        du, dp = pull(DY[rows])
        chex.assert_trees_all_close(y[rows], right, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(dx[rows], du, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(new[name], stats["batch_stats"], rtol=1e-5)
        if shared:
            total = jax.tree.map(jnp.add, total, dp)
        else:
            total[name] = dp
    chex.assert_trees_all_close(dparams, total, rtol=1e-4, atol=1e-5)


def test_a_shared_scale_keeps_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.standard_normal((8, 4)), jnp.float64)
        layer = layer_of(shared=True)
        variables = layer.init(jax.random.key(0), x, domain=0)
        y, _ = layer.apply(variables, x, domain=0, mutable=["batch_stats"])
        model = variants.NnxDomainBatchNorm(4, 3, shared=True, rngs=nnx.Rngs(0))
        right = (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-5)[None]
        chex.assert_trees_all_close((y, model(x, domain=0)), (right, right), rtol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_nnx_equals_linen(shared):
    layer = layer_of(shared=shared)
    variables = layer.init(jax.random.key(0), X, domain=DOMAIN)
    model = variants.NnxDomainBatchNorm(4, 3, shared=shared, rngs=nnx.Rngs(0))
    for domain in (DOMAIN, 1, jnp.array(2)):
        y, new = layer.apply(variables, X, domain=domain, mutable=["batch_stats"])
        variables = {**variables, **new}
        chex.assert_trees_all_close(model(X, domain=domain), y)
    for index, each in enumerate(model.layers):
        state = variables["batch_stats"][f"domain_{index}"]
        chex.assert_trees_all_close(each.mean[...], state["mean"])
        chex.assert_trees_all_close(each.var[...], state["var"])
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == (2 if shared else 6)


@pytest.mark.parametrize("shared", [False, True])
def test_tools_keep_a_shared_scale_and_bias(shared):
    layer = variants.DomainBatchNorm(use_running_average=True, shared=shared)
    variables = layer.init(jax.random.key(0), X, domain=0)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)

    def call(model, x):
        return model(x, domain=1)

    right = layer.apply(variables, X, domain=1)
    folded, _ = jaxbn.fold(layer, variables, X, call)
    chex.assert_trees_all_close(
        layer.apply(folded, X, domain=1), right, rtol=1e-5, atol=1e-5
    )
    # A prior that outweighs every batch changes nothing.
    run = variants.with_variant(
        lambda given: layer.apply(given, X, domain=1), variants.TestTime(1e30)
    )
    chex.assert_trees_all_close(run(variables), right, rtol=1e-5, atol=1e-5)


def test_an_absent_domain_is_no_step():
    for variant in (variants.Renorm(), variants.MovingAverage(3)):
        layer = layer_of(variant=variant)
        variables = layer.init(jax.random.key(0), X, domain=0)
        _, new = layer.apply(
            variables,
            X,
            domain=jnp.zeros(8, jnp.int32),
            mutable=["batch_stats", "batch_sync"],
        )
        steps = [new["batch_stats"][f"domain_{i}"]["steps"] for i in range(3)]
        assert list(map(int, steps)) == [1, 0, 0]
        chex.assert_trees_all_equal(
            new["batch_stats"]["domain_1"], variables["batch_stats"]["domain_1"]
        )


@pytest.mark.parametrize("shared", [False, True])
def test_the_functions_equal_the_layer(shared):
    layer = layer_of(shared=shared)
    variables = layer.init(jax.random.key(0), X, domain=DOMAIN)
    variables = jax.tree.map(lambda leaf: leaf + 0.5, variables)
    names = [f"domain_{index}" for index in range(3)]
    params = variables["params"]
    scale, bias = (
        params[each] if shared else [params[name][each] for name in names]
        for each in ("scale", "bias")
    )
    stats = [jaxbn.BatchStats(**variables["batch_stats"][name]) for name in names]
    for domain in (DOMAIN, 2):
        y, new = layer.apply(variables, X, domain=domain, mutable=["batch_stats"])
        z, found = variants.domain_batch_norm_train(X, scale, bias, stats, domain)
        chex.assert_trees_all_close(z, y, rtol=1e-5, atol=1e-5)
        for name, each in zip(names, found, strict=True):
            state = new["batch_stats"][name]
            chex.assert_trees_all_close(
                (each.mean, each.var), (state["mean"], state["var"])
            )
        y = layer.clone(use_running_average=True).apply(variables, X, domain=domain)
        z = variants.domain_batch_norm_inference(X, scale, bias, stats, domain)
        chex.assert_trees_all_close(z, y, rtol=1e-5, atol=1e-5)


def test_a_domain_for_the_whole_batch_leaves_the_others_alone():
    layer = layer_of()
    variables = layer.init(jax.random.key(0), X, domain=0)
    assert set(variables["batch_stats"]) == {"domain_0", "domain_1", "domain_2"}
    for domain in (1, jnp.array(1), jnp.ones(8, jnp.int32)):
        _, new = layer.apply(variables, X, domain=domain, mutable=["batch_stats"])
        chex.assert_trees_all_equal(
            new["batch_stats"]["domain_0"], variables["batch_stats"]["domain_0"]
        )
        chex.assert_trees_all_close(
            new["batch_stats"]["domain_1"]["mean"], 0.01 * X.mean((0, 1)), rtol=1e-5
        )


def test_tools_see_every_domain():
    layer = layer_of()
    variables = layer.init(jax.random.key(0), X, domain=DOMAIN)

    def call(model, x):
        return model(x, domain=DOMAIN)

    new = jaxbn.recalibrate(layer, variables, [X], call)
    for index in range(3):
        right = X[index == DOMAIN].mean((0, 1))
        state = new["batch_stats"][f"domain_{index}"]
        chex.assert_trees_all_close(state["mean"], right, atol=1e-5)
    assert len(jaxbn.diagnose(layer, variables, X, call).layers) == 3
    frozen = jaxbn.freeze(
        lambda given: layer.apply(given, X, domain=DOMAIN, mutable=["batch_stats"]),
        "domain_1",
    )
    state = frozen(variables)[1]["batch_stats"]
    chex.assert_trees_all_equal(state["domain_1"], variables["batch_stats"]["domain_1"])
    assert np.any(state["domain_0"]["mean"])


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (3, r"lie in \[0, 3\)"),
        (jnp.zeros(3, jnp.int32), "one index per example"),
        (jnp.zeros(8), "one index per example"),
    ],
)
def test_errors(domain, words):
    layer = layer_of()
    variables = layer.init(jax.random.key(0), X, domain=0)
    with pytest.raises(ValueError, match=words):
        layer.apply(variables, X, domain=domain, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="`domains`"):
        variants.NnxDomainBatchNorm(4, 0, rngs=nnx.Rngs(0))
