"""One training step of the layer in every parallel style JAX has, on eight devices."""

from typing import NamedTuple

import flax.linen as nn
import jax

import jaxbn.testing
from jaxbn import linen

P = jax.P
DEVICES = 8
AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit


class Step(NamedTuple):
    """Of the whole batch: `[N, ..., C]` and `[C]`."""

    y: jax.Array
    stats: jaxbn.BatchStats
    dx: jax.Array
    dscale: jax.Array
    dbias: jax.Array


def batch_norm(x, scale, bias, stats, *, mask, layer=False, **options):
    """The functional form, or the Linen layer."""
    if not layer:
        return jaxbn.batch_norm_train(x, scale, bias, stats, mask=mask, **options)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": stats._asdict(),
    }
    module = linen.BatchNorm(use_running_average=False, **options)
    y, new = module.apply(variables, x, mask=mask, mutable=["batch_stats"])
    return y, jaxbn.BatchStats(**new["batch_stats"])


def step(x, mask, dy, scale, bias, stats, **options):
    def normalize(x, scale, bias):
        return batch_norm(x, scale, bias, stats, mask=mask, **options)

    y, vjp, new = jax.vjp(normalize, x, scale, bias, has_aux=True)
    return Step(y, new, *vjp(dy))


def single_device(x, mask, dy, scale, bias, stats, **options):
    call = jax.jit(lambda *args: step(*args, **options))
    return call(x, mask, dy, scale, bias, stats)


def _mapped(transform):
    """Gradients are taken on each device; those of scale and bias are its own."""

    def run(x, mask, dy, scale, bias, stats, **options):
        def on_device(x, mask, dy):
            return step(x, mask, dy, scale, bias, stats, axis_name="d", **options)

        shards = [a.reshape(DEVICES, -1, *a.shape[1:]) for a in (x, mask, dy)]
        out = jax.jit(transform(on_device))(*shards)
        jaxbn.testing.assert_in_sync(out.stats, axis=0)
        return Step(
            out.y.reshape(x.shape),
            jax.tree.map(lambda leaf: leaf[0], out.stats),
            out.dx.reshape(x.shape),
            out.dscale.sum(0),
            out.dbias.sum(0),
        )

    return run


def _unchecked(function):
    def on_shard(*shards):
        out = function(*(shard[0] for shard in shards))
        return jax.tree.map(lambda leaf: leaf[None], out)

    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AUTO,))
    return jax.shard_map(
        on_shard, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False
    )


def _nn_vmap(function):
    """The functional form inside `nn.vmap`, as a module with an axis name."""

    class Module(nn.Module):
        @nn.compact
        def __call__(self, *args):
            return function(*args)

    mapped = nn.vmap(Module, axis_name="d", variable_axes={})()
    return lambda *args: mapped.apply({}, *args)


def shard_map_inside(x, mask, dy, scale, bias, stats, **options):
    """Checked: JAX knows what is replicated, and adds up dscale and dbias itself."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AUTO,))
    shard, whole = P("d"), P()
    mapped = jax.shard_map(
        lambda *args: step(*args, axis_name="d", **options),
        mesh=mesh,
        in_specs=(shard, shard, shard, whole, whole, whole),
        out_specs=Step(shard, whole, shard, whole, whole),
    )
    return jax.jit(mapped)(x, mask, dy, scale, bias, stats)


def _shard_map_outside(check_vma, names=("d",), sizes=(DEVICES,)):
    """The gradient is taken of the mapped function."""

    def run(x, mask, dy, scale, bias, stats, **options):
        mesh = jax.make_mesh(sizes, names, axis_types=(AUTO,) * len(names))
        shard = P("d")

        def normalize(x, mask, scale, bias):
            return batch_norm(
                x, scale, bias, stats, mask=mask, axis_name="d", **options
            )

        mapped = jax.shard_map(
            normalize,
            mesh=mesh,
            in_specs=(shard, shard, P(), P()),
            out_specs=(shard, P()),
            check_vma=check_vma,
        )

        @jax.jit
        def outside(x, scale, bias):
            y, vjp, new = jax.vjp(
                lambda x, *affine: mapped(x, mask, *affine), x, scale, bias,
                has_aux=True,
            )  # fmt: skip
            return Step(y, new, *vjp(dy))

        return outside(x, scale, bias)

    return run


def two_names(x, mask, dy, scale, bias, stats, **options):
    """The batch over both axes of a mesh, statistics over both."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AUTO, AUTO))
    shard, whole = P(("a", "b")), P()
    mapped = jax.shard_map(
        lambda *args: step(*args, axis_name=("a", "b"), **options),
        mesh=mesh,
        in_specs=(shard, shard, shard, whole, whole, whole),
        out_specs=Step(shard, whole, shard, whole, whole),
    )
    return jax.jit(mapped)(x, mask, dy, scale, bias, stats)


def _jit(axis_type):
    """Statistics are global by construction; the compiler finds the collectives."""

    def run(x, mask, dy, scale, bias, stats, **options):
        mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(axis_type,))
        put = lambda tree, spec: jax.device_put(  # noqa: E731
            tree, jax.sharding.NamedSharding(mesh, spec)
        )
        with jax.set_mesh(mesh):
            call = jax.jit(lambda *args: step(*args, **options))
            return call(*put((x, mask, dy), P("d")), *put((scale, bias, stats), P()))

    return run


MAPPED = {
    "pmap": _mapped(lambda f: jax.pmap(f, axis_name="d")),
    "vmap": _mapped(lambda f: jax.vmap(f, axis_name="d")),
    "nn.vmap": _mapped(_nn_vmap),
    "shard_map unchecked": _mapped(_unchecked),
    "shard_map": shard_map_inside,
    "shard_map, gradient outside": _shard_map_outside(True),
    "shard_map unchecked, gradient outside": _shard_map_outside(False),
    "data x model": _shard_map_outside(True, ("d", "model"), (4, 2)),
    "two names": two_names,
}
JIT = {"jit Auto": _jit(AUTO), "jit Explicit": _jit(EXPLICIT)}
ALL = {"single device": single_device} | MAPPED | JIT
