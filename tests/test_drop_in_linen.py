"""Runs Linen programs with Flax's layer and with ours: same trees, same numbers.

Each program takes the constructor of a layer and returns all that it computes.
"""

import dataclasses
import functools
import pickle
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbn.linen import BatchNorm
from tests import drop_in

X = drop_in.X
KEY = jax.random.key(0)
INIT = {
    "scale_init": nn.initializers.normal(1.0),
    "bias_init": nn.initializers.normal(1.0),
}
STATS = ["batch_stats"]
EXHAUSTIVE = pytest.mark.exhaustive

flax_layer = functools.partial(nn.BatchNorm, momentum=0.5, **INIT)
our_layer = functools.partial(BatchNorm, momentum=0.5, unbiased=False, **INIT)


class Block(nn.Module):
    """A layer where another is before it and another after it."""

    norm: Any
    use_running_average: bool | None = False

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(3)(x))
        return x + self.norm(self.use_running_average)(x)


class ScanBlock(Block):
    """A block for `nn.scan`: it takes carry and input, and returns carry and output."""

    @nn.compact
    def __call__(self, x, _):
        y = Block(self.norm, self.use_running_average, name="block")(x)
        return y, y.mean()


def run(net, *args, rngs=KEY, mutable=STATS):
    """Variables, output, update, gradients of parameters and first argument."""
    variables = net.init(rngs, *args)

    def loss(params, x):
        out = net.apply({**variables, "params": params}, x, *args[1:], mutable=mutable)
        leaves = jax.tree.leaves(out[0])
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves), out

    grads, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
        variables["params"], args[0]
    )
    return variables, out, grads


def plain(norm):
    return run(Block(norm), X)


def inference(norm):
    return run(Block(norm, True), X)


def named_by_itself(norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(norm(False)(x))
            x = nn.tanh(norm(False)(x))
            return norm(False, name="last")(x)

    result = run(Net(), X)
    assert set(result[0]["params"]) == {"BatchNorm_0", "BatchNorm_1", "last"}
    return result


def twice_in_one_call(norm):
    class Net(nn.Module):
        def setup(self):
            self.bn = norm()

        def __call__(self, x):
            y = self.bn(x, use_running_average=False)
            return y, self.bn(2 * y + x, use_running_average=False)

    return run(Net(), X)


def jitted(norm):
    return run(nn.jit(Block)(norm), X)


def rematerialised(norm):
    result = run(nn.remat(Block)(norm), X)
    chex.assert_trees_all_close(result[1:], plain(norm)[1:], rtol=1e-5, atol=1e-6)
    return result


def scanned_with_statistics_per_layer(norm):
    net = nn.scan(
        ScanBlock,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=3,
    )
    return run(net(norm), X, None)


def scanned_with_shared_layers(norm):
    """One layer over time, whose statistics move at every step."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            cell = ScanBlock(norm)
            if self.is_initializing():  # What `nn.scan` carries must exist before.
                return cell(x, None)
            scan = nn.scan(
                lambda cell, x, _: cell(x, None),
                variable_broadcast="params",
                variable_carry="batch_stats",
                split_rngs={"params": False},
                length=3,
            )
            return scan(cell, x, None)

    return run(Net(), X)


def remat_scan(norm):
    return run(nn.remat_scan(Block, lengths=(2, 2))(norm), X)


def vmapped_layers(norm):
    net = nn.vmap(
        Block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )
    return run(net(norm), X)


def vmapped_with_shared_layers(norm):
    """The mapped copies share the statistics, as in training on several devices."""
    net = nn.vmap(
        Block,
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
        axis_name="devices",
    )
    return run(net(functools.partial(norm, axis_name="devices")), X)


def in_while_loop(norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = Block(norm)
            if self.is_initializing():
                return block(x)
            return nn.while_loop(
                lambda block, carry: carry[0] < 3,
                lambda block, carry: (carry[0] + 1, block(carry[1])),
                block,
                (0, x),
                carry_variables="batch_stats",
            )[1]

    net = Net()  # Without a gradient, which no `while_loop` has.
    variables = net.init(KEY, X)
    return variables, net.apply(variables, X, mutable=STATS)


def in_conditionals(norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, place):
            block, other = Block(norm), Block(norm)
            branches = (
                lambda mdl, x: block(x),
                lambda mdl, x: other(x),
                lambda mdl, x: 2 * x,
            )
            if self.is_initializing():
                return sum(branch(self, x) for branch in branches)
            x = nn.switch(place, branches, self, x)
            return nn.cond(place == 1, branches[0], branches[2], self, x)

    return [run(Net(), X, place) for place in range(3)]


def mapped_variables(norm):
    def halve(collections):
        return jax.tree.map(lambda leaf: leaf / 2, collections)

    def double(collections):
        return jax.tree.map(lambda leaf: leaf * 2, collections)

    class Net(nn.Module):
        collection: str

        @nn.compact
        def __call__(self, x):
            return nn.map_variables(
                Block,
                self.collection,
                halve,
                double,
                init=self.is_initializing(),
                mutable=self.is_mutable_collection(self.collection),
            )(norm)(x)

    return run(Net("params"), X), run(Net("batch_stats"), X)


def lifted_derivatives(norm):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = Block(norm)
            if self.is_initializing():
                return block(x)
            y, pull = nn.vjp(lambda block, x: block(x), block, x)
            params, dx = pull(jnp.cos(y))
            tangent = nn.jvp(
                lambda block, x: block(x),
                block,
                (x,),
                (dx,),
                variable_tangents={"params": params["params"]},
            )
            grads = nn.grad(lambda block, x: jnp.sum(block(x) ** 2), block, x)
            return y, params["params"], dx, tangent, grads

    return run(Net(), X)


def metadata(norm):
    boxed = functools.partial(
        norm,
        scale_init=nn.with_partitioning(INIT["scale_init"], ("embed",)),
        bias_init=nn.with_logical_partitioning(INIT["bias_init"], ("embed",)),
    )
    net = nn.scan(
        ScanBlock,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=2,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    scanned = run(net(boxed), X, None)
    specs = nn.get_partition_spec(scanned[0])
    layer = specs["params"]["block"]["BatchNorm_0"]
    assert layer == {name: jax.P("layers", "embed") for name in ("bias", "scale")}
    rules = (("embed", "model"), ("layers", None))
    mesh_specs = nn.logical_to_mesh(specs, rules)
    added = nn.add_metadata_axis(
        Block,
        variable_axes={"params": 0},
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned, specs, mesh_specs, run(added(boxed), X)


def shared_scope(norm):
    class Net(nn.Module):
        def setup(self):
            self.bn = norm(False)
            nn.share_scope(self, self.bn)

        def __call__(self, x):
            return self.bn(x)

    result = run(Net(), X)
    assert set(result[0]["params"]) == {"scale", "bias"}
    return result


def bound(norm):
    net = Block(norm)
    module = net.bind(net.init(KEY, X), mutable=STATS)
    y = module(X), module(X)
    unbound, variables = module.unbind()
    return y, variables, unbound.apply(variables, X, mutable=STATS)


def captured_and_sown(norm):
    class Net(Block):
        @nn.compact
        def __call__(self, x):
            y = super().__call__(self.perturb("dx", x))
            self.sow("intermediates", "sum", y.sum())
            return y

    net = Net(norm)
    variables = net.init(KEY, X)
    mutable = ["intermediates", *STATS]
    return net.apply(variables, X, mutable=mutable, capture_intermediates=True)


def copies(norm):
    layer = norm(True)
    made = [
        layer.clone(epsilon=0.1),
        layer.copy(use_bias=False),
        dataclasses.replace(layer, axis=1),
    ]
    plain = layer.clone(**dict.fromkeys(INIT, nn.initializers.ones))
    made.append(pickle.loads(pickle.dumps(plain)))
    assert made[-1] == plain
    assert hash(made[-1]) == hash(plain)
    return [each.init_with_output(KEY, X) for each in made]


def without_arrays(norm):
    net = Block(norm)
    shapes = jax.eval_shape(net.init, KEY, X)
    lazy = net.lazy_init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype))
    return shapes, lazy, jax.eval_shape(net.init_with_output, KEY, X)


def any_filter_of_mutable(norm):
    net = Block(norm)
    variables = net.init(KEY, X)
    filters = (True, nn.DenyList("params"), "batch_stats", ("batch_stats", "other"))
    return [net.apply(variables, X, mutable=mutable) for mutable in filters]


def many_steps(norm):
    net = Block(norm)
    variables = net.init(KEY, X)

    def step(stats, x):
        y, update = net.apply({**variables, "batch_stats": stats}, x, mutable=STATS)
        return update["batch_stats"], y

    batches = jnp.stack([X, X[::-1] + 2, 3 * X])
    return jax.lax.scan(step, variables["batch_stats"], batches)


PROGRAMS = (
    named_by_itself,
    twice_in_one_call,
    rematerialised,
    scanned_with_shared_layers,
    in_while_loop,
    shared_scope,
    bound,
    captured_and_sown,
    copies,
    without_arrays,
    any_filter_of_mutable,
    many_steps,
)
LONG_PROGRAMS = (
    plain,
    inference,
    jitted,
    vmapped_with_shared_layers,
    mapped_variables,
    scanned_with_statistics_per_layer,
    remat_scan,
    vmapped_layers,
    in_conditionals,
    lifted_derivatives,
    metadata,
)


@pytest.mark.parametrize(("program", "fast"), drop_in.cases(PROGRAMS, LONG_PROGRAMS))
def test_same_program(program, fast):
    drop_in.compare(program, fast, our_layer, flax_layer)


@pytest.mark.parametrize(
    "start", ["real", *(pytest.param(s, marks=EXHAUSTIVE) for s in ("own", "Flax's"))]
)
def test_complex_numbers(start):
    """Flax's mean becomes complex by the first update, ours is from the start."""
    x = X[..., :2] + 1j * X[::-1, :, 1:]
    ours, theirs = our_layer(use_fast_variance=False), flax_layer()
    first = {"own": ours, "Flax's": theirs, "real": theirs}[start]
    variables = first.init(KEY, x.real if start == "real" else x, True)
    for train in (False, True):
        results = [
            layer.apply(variables, x, use_running_average=not train, mutable=STATS)
            for layer in (ours, theirs)
        ]
        variables = {**variables, **results[0][1]}
        if train:
            drop_in.assert_same(*results)
        else:
            np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)


@pytest.mark.parametrize(
    "x_dtype", [np.float64, pytest.param(np.float32, marks=EXHAUSTIVE)]
)
@pytest.mark.parametrize("param_dtype", [np.float32, np.float64])
def test_double_precision(x_dtype, param_dtype):
    """Flax's statistics become float64 by the first update, ours are what they were."""
    with jax.enable_x64(True):
        x = 1000 + np.asarray(X, x_dtype)
        options = {"param_dtype": param_dtype, "use_fast_variance": False}
        ours, theirs = our_layer(False, **options), flax_layer(False, **options)
        variables = theirs.init(KEY, x)
        chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(KEY, x), variables)
        (y, new), (expected, expected_new) = (
            layer.apply(variables, x, mutable=STATS) for layer in (ours, theirs)
        )
        assert y.dtype == expected.dtype
        tolerance = 1e-9 if x_dtype == np.float64 else 1e-3
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
        chex.assert_trees_all_equal_dtypes(new["batch_stats"], variables["batch_stats"])
        chex.assert_trees_all_close(
            jax.tree.map(np.float64, new), jax.tree.map(np.float64, expected_new),
            rtol=1e-6,
        )  # fmt: skip


@pytest.mark.parametrize("given", [(None, None), (True, False)])
def test_switch_given_nowhere_or_twice(given):
    in_constructor, in_call = given
    for cls in (nn.BatchNorm, BatchNorm):
        with pytest.raises(ValueError, match="use_running_average"):
            cls(in_constructor).init(KEY, X, use_running_average=in_call)


def test_carried_statistics_cannot_be_made_inside_a_scan():
    """Flax's rule, whatever the layer; `scanned_with_shared_layers` is what works."""
    for norm in (flax_layer, our_layer):
        net = nn.scan(
            ScanBlock,
            variable_broadcast="params",
            variable_carry="batch_stats",
            split_rngs={"params": False},
            length=2,
        )(norm)
        with pytest.raises(TypeError, match="carry input and carry output"):
            net.init(KEY, X, None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 1},
        {"show_repeated": True},
        {"column_kwargs": {"width": 40}, "table_kwargs": {"expand": True}},
    ],
)
def test_tables(options):
    ours, theirs = (
        Block(norm).tabulate(KEY, X, console_kwargs={"width": 200}, **options)
        for norm in (our_layer, flax_layer)
    )
    assert ours == theirs


def test_table_with_costs():
    table = Block(our_layer).tabulate(
        KEY, X, compute_flops=True, compute_vjp_flops=True,
        console_kwargs={"width": 200, "force_terminal": False},
    )  # fmt: skip
    row = next(line for line in table.splitlines() if "BatchNorm_0" in line)
    costs = [int(cell) for cell in row.replace("\u2502", "|").split("|")[5:7]]
    # A sum, a product and a difference of each element at least; twice with the vjp.
    assert X.size * 3 < costs[0] < costs[1]
