"""Runs NNX programs with Flax's layer and with ours: same trees, same numbers.

Each program takes the class of a layer and returns all that it computes.
"""

import contextlib
import copy
import functools
import io
import pickle

import chex
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxbn.linen
import jaxbn.nnx
from tests import drop_in

X = drop_in.X
KEY = jax.random.key(0)
OPTIONS = {
    "momentum": 0.5,
    "scale_init": nnx.initializers.normal(1.0),
    "bias_init": nnx.initializers.normal(1.0),
}

flax_layer = functools.partial(nnx.BatchNorm, **OPTIONS)
our_layer = functools.partial(jaxbn.nnx.BatchNorm, unbiased=False, **OPTIONS)


class Block(nnx.Module):
    """A layer where another is before it and another after it."""

    def __init__(self, norm, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.bn = norm(3, rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.linear(x))
        return x + self.bn(x)


def make(norm):
    return Block(norm, nnx.Rngs(0))


def call(model, x):
    return model(x)


def loss(model, x):
    return jnp.sum(jnp.sin(model(x)))


def values(tree):
    """Plain arrays under the paths of the model."""
    return nnx.to_pure_dict(nnx.state(tree))


def plain(norm):
    model = make(norm)
    return model(X), model(X + 1), values(model)


def evaluation(norm):
    model = make(norm)
    model(X)
    model.eval()
    seen = nnx.view(make(norm), use_running_average=True)
    return model(X), seen(X), model.bn(X, use_running_average=False), values(model)


def jitted(norm):
    model = make(norm)
    y = nnx.jit(call)(model, X)
    return y, values(model)


def jitted_as_a_tree(norm):
    model = make(norm)
    y = nnx.jit(call, graph=False)(model, X)
    return y, values(model)


def functional(norm):
    """Split, a pure step under `lax.scan`, update."""
    model = make(norm)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def step(rest, x):
        merged = nnx.merge(graph, params, rest)
        y = merged(x)
        return nnx.state(merged, nnx.Not(nnx.Param)), y

    rest, ys = jax.lax.scan(step, rest, jnp.stack([X, X + 1]))
    nnx.update(model, rest)
    return ys, values(model), values(nnx.merge(graph, params, rest))


def derivatives(norm):
    model = make(norm)
    value, grads = nnx.value_and_grad(loss)(model, X)
    dx = nnx.grad(loss, argnums=1)(model, X)
    y, pull = nnx.vjp(call, model, X, graph_updates=False)
    return value, nnx.to_pure_dict(grads), dx, y, pull(jnp.cos(y))[1], values(model)


def rematerialised(norm):
    model, other = make(norm), make(norm)
    grads = nnx.grad(lambda model: jnp.sum(jnp.sin(nnx.remat(call)(model, X))))(model)
    nnx.grad(loss)(other, X)
    chex.assert_trees_all_close(values(model), values(other), rtol=1e-5)  # Once.
    return nnx.to_pure_dict(grads), values(model)


def mapped_layers(norm):
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_layers(rngs):
        return Block(norm, rngs)

    model = make_layers(nnx.Rngs(0).split(2))
    return nnx.vmap(call, in_axes=(0, None))(model, X), values(model)


def mapped_with_shared_parameters(norm):
    """Parameters once, statistics per copy."""
    axes = nnx.StateAxes({nnx.BatchStat: 0, ...: None})

    @nnx.vmap(in_axes=0, out_axes=axes, axis_size=2)
    def make_layers(_):
        return Block(norm, nnx.Rngs(0))

    model = make_layers(jnp.arange(2))
    x = jnp.stack([X, 2 * X + 1])
    return nnx.vmap(call, in_axes=(axes, 0))(model, x), values(model)


def synchronised(norm):
    model = make(functools.partial(norm, axis_name="d"))
    axes = nnx.StateAxes({...: None})
    mapped = nnx.vmap(call, in_axes=(axes, 0), axis_name="d")
    return mapped(model, X.reshape(4, 2, 4, 3)), values(model)


def in_a_shard_map(norm):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    model = make(functools.partial(norm, axis_name="d"))
    mapped = nnx.shard_map(
        call, mesh=mesh, in_specs=(jax.P(), jax.P("d")), out_specs=jax.P("d")
    )
    return nnx.jit(mapped)(model, X), values(model)


def scanned_layers(norm):
    @nnx.vmap(in_axes=0, out_axes=0)
    def make_layers(rngs):
        return Block(norm, rngs)

    model = make_layers(nnx.Rngs(0).split(3))
    scan = nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    return scan(model, X), values(model)


def scanned_over_time(norm):
    """One layer whose statistics are carried."""
    model = make(norm)

    @nnx.scan(in_axes=(nnx.StateAxes({...: nnx.Carry}), 0), out_axes=0)
    def step(model, x):
        return model(x)

    return step(model, jnp.stack([X, X + 1, X * 2])), values(model)


def loops_and_conditionals(norm):
    model = make(norm)

    def body(_, carry):
        model, x = carry
        return model, model(x)

    model, x = nnx.fori_loop(0, 2, body, (model, X))
    _, model, x = nnx.while_loop(
        lambda carry: carry[0] < 2,
        lambda carry: (carry[0] + 1, *body(0, carry[1:])),
        (0, model, x),
    )
    x = nnx.cond(True, call, lambda model, x: x, model, x)
    x = nnx.switch(1, [call, lambda model, x: x], model, x)
    return x, values(model)


def without_arrays(norm):
    model = nnx.eval_shape(lambda: make(norm))
    return nnx.state(model), nnx.eval_shape(call, make(norm), X)


def copies(norm):
    model = make(norm)
    model(X)
    made = [nnx.clone(model), copy.deepcopy(model)]
    made.append(pickle.loads(pickle.dumps(model.bn)))
    results = [(each(X), values(each)) for each in made]
    return results, values(model)  # Which the copies leave alone.


def metadata(norm):
    mesh = jax.make_mesh((4, 2), ("d", "m"))
    options = {
        "scale_metadata": {"out_sharding": ("m",), "note": 1},
        "bias_metadata": {"out_sharding": ("m",)},
    }
    with jax.set_mesh(mesh):
        layer = norm(4, rngs=nnx.Rngs(0), **options)
        specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(layer)))
        found = {name: getattr(layer, name).get_metadata() for name in values(layer)}
        shardings = jax.tree.map(lambda leaf: str(leaf.sharding), values(layer))
    return specs, found, shardings, values(layer)


def on_explicit_mesh(norm):
    mesh = jax.make_mesh((8,), ("d",))
    model = make(norm)
    x = jax.device_put(X, jax.NamedSharding(mesh, jax.P("d")))
    with jax.set_mesh(mesh):
        y = nnx.jit(call)(model, x)
        y = y, call(model, x)
        grads = nnx.jit(nnx.grad(loss))(model, x)
        types = jax.tree.map(lambda leaf: str(jax.typeof(leaf)), (y, values(model)))
    return y, nnx.to_pure_dict(grads), values(model), types


def own_promotion(norm):
    seen = []

    def to_bfloat16(arrays, dtype):
        seen.append([None if a is None else (a.shape, a.dtype) for a in arrays])
        return tuple(None if a is None else a.astype(jnp.bfloat16) for a in arrays)

    layer = norm(3, promote_dtype=to_bfloat16, use_scale=False, rngs=nnx.Rngs(0))
    y = layer(X)
    return y.dtype, seen


def scan_of_jax(model, x):
    return jax.lax.scan(lambda x, _: (model(x), None), x, None, length=3)[0]


def run_with(norm, run, *, hijax=False, ref=False):
    with nnx.var_defaults(hijax=hijax, ref=ref):
        model = make(norm)
        return run(model, X), jax.tree.map(jnp.array, values(model))


def references(norm):
    ways = call, nnx.jit(call), jax.jit(call), scan_of_jax
    return [run_with(norm, way, ref=True) for way in ways]


def hijax(norm):
    results = [run_with(norm, call, hijax=True)]
    # A newer Flax lets no such variable change inside a transformation of JAX. Both
    # layers then raise.
    with contextlib.suppress(flax.errors.ImmutableVariableError):
        results.append(run_with(norm, scan_of_jax, hijax=True))
    return results


def to_linen(norm):
    module = nnx.bridge.to_linen(norm.func, 3, **norm.keywords)
    variables = module.init(KEY, X)
    return variables, module.apply(variables, X, mutable=["batch_stats"])


def to_nnx(norm):
    ours = norm.func is jaxbn.nnx.BatchNorm
    options = {**norm.keywords, "use_running_average": False}
    layer = (jaxbn.linen if ours else nn).BatchNorm(**options)
    call = functools.partial(nnx.bridge.ToNNX.__call__, mutable=["batch_stats"])
    model = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(X)
    kinds = {
        name: type(getattr(model, name)) for name in ("mean", "var", "scale", "bias")
    }
    results = call(model, X), nnx.jit(call)(model, X)
    grads = nnx.grad(lambda model: jnp.sum(jnp.sin(call(model, X))))(model)
    grads = nnx.to_pure_dict(grads)
    state = values(model)
    state.pop("to_nnx__rngs")
    return kinds, results, state, {name: grads[name] for name in ("scale", "bias")}


PROGRAMS = (
    evaluation,
    jitted_as_a_tree,
    functional,
    rematerialised,
    scanned_over_time,
    without_arrays,
    copies,
    metadata,
    own_promotion,
    to_linen,
    to_nnx,
)
LONG_PROGRAMS = (
    plain,
    jitted,
    derivatives,
    mapped_with_shared_parameters,
    synchronised,
    in_a_shard_map,
    on_explicit_mesh,
    mapped_layers,
    scanned_layers,
    loops_and_conditionals,
    references,
    hijax,
)


@pytest.mark.parametrize(("program", "fast"), drop_in.cases(PROGRAMS, LONG_PROGRAMS))
def test_same_program(program, fast):
    drop_in.compare(program, fast, our_layer, flax_layer)


def test_hijax_variables_under_jit():
    """Our layer works, where Flax's layer raises an error, if Flax lets it work."""
    expected = run_with(our_layer, nnx.jit(call))
    refusals = (AttributeError, flax.errors.ImmutableVariableError)
    with pytest.raises(refusals):
        run_with(flax_layer, jax.jit(call), hijax=True)
    try:
        actual = run_with(our_layer, jax.jit(call), hijax=True)
    except flax.errors.ImmutableVariableError:
        return  # A newer Flax refuses to change any such variable there.
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.exhaustive
def test_double_precision():
    """The statistics stay float32, in Flax's layer too, which warns of that."""

    def run(norm):
        layer = norm(
            3, param_dtype=np.float64, use_fast_variance=False, rngs=nnx.Rngs(0)
        )
        y, grads = layer(x), nnx.to_pure_dict(nnx.grad(loss)(layer, x))
        return jax.tree.map(np.asarray, (y, values(layer), grads))

    with jax.enable_x64(True):
        x = 1000 + np.asarray(X, np.float64)
        ours = run(our_layer)
        with pytest.warns(FutureWarning, match="cannot safely cast"):
            theirs = run(flax_layer)
        chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
        chex.assert_trees_all_close(ours[1:], theirs[1:], rtol=1e-6, atol=1e-6)


def test_view_info():
    ours, theirs = (nnx.view_info(make(layer)) for layer in (our_layer, flax_layer))
    for name in ("use_running_average", "update_running_average"):
        assert f"{name}: bool | None = None" in ours
    assert "use_running_average: bool | None = None" in theirs


def test_tables():
    options = {"console_kwargs": {"width": 200}}
    ours, theirs = (
        nnx.tabulate(make(layer), X, **options) for layer in (our_layer, flax_layer)
    )
    assert ours == theirs
    costs = {"compute_flops": True, "compute_vjp_flops": True}
    assert "vjp_flops" in nnx.tabulate(make(our_layer), X, **options, **costs)


def test_what_is_shown_and_walked():
    ours, theirs = make(our_layer), make(flax_layer)
    for name in ("mean=BatchStat(", "scale=Param(", "use_running_average=False"):
        assert name in repr(ours)
    paths = [
        {
            path
            for path, value in nnx.iter_graph(model)
            if isinstance(value, nnx.Variable)
        }
        for model in (ours, theirs)
    ]
    assert paths[0] == paths[1]
    assert {type(value) for _, value in nnx.iter_modules(ours)} == {
        Block, nnx.Linear, jaxbn.nnx.BatchNorm
    }  # fmt: skip
    ours.set_attributes(use_running_average=True)
    assert ours.bn.use_running_average
    assert hash(nnx.graphdef(ours)) == hash(nnx.graphdef(nnx.clone(ours)))
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        nnx.display(ours)
    assert "BatchNorm" in stream.getvalue()


def test_a_second_call_is_not_compiled_again():
    traced = []

    @nnx.jit
    def step(model, x):
        traced.append(x.shape)
        return model(x)

    model = make(functools.partial(our_layer, axis=[-1]))
    for _ in range(3):
        step(model, X)
    assert traced == [X.shape]


@pytest.mark.exhaustive
@pytest.mark.parametrize("spec", [("d",), ("d", None, "m"), (None, None, "m")])
def test_channels_split_over_an_explicit_mesh(spec):
    """Our layer works, where Flax's layer raises for channels that are split."""
    mesh = jax.make_mesh((4, 2), ("d", "m"))
    x = np.concatenate([X, X[..., :1] * 2], -1)
    metadata = {"out_sharding": ("m",)} if "m" in spec else {}
    layer = our_layer(4, rngs=nnx.Rngs(0))
    expected = layer(x), values(layer), nnx.grad(loss)(layer, x)
    with jax.set_mesh(mesh):
        other = our_layer(
            4, rngs=nnx.Rngs(0), scale_metadata=metadata, bias_metadata=metadata
        )
        types = jax.tree.map(jax.typeof, values(other))
        sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
        y = nnx.jit(call)(other, sharded)
        assert jax.typeof(y) == jax.typeof(sharded)
        state = values(other)
        grads = nnx.jit(nnx.grad(loss))(other, sharded)
        # Another step compiles no other program.
        chex.assert_trees_all_equal(jax.tree.map(jax.typeof, state), types)
    results = (jax.tree.leaves(each) for each in ((y, state, grads), expected))
    chex.assert_trees_all_close(
        *(jax.tree.map(np.asarray, each) for each in results), rtol=1e-4, atol=1e-4
    )
