"""One training step of a normalisation in every parallel style that JAX has.

A style takes a normalisation and a number of devices. It returns a jitted function of
the whole batch. So every style can be compared with one device that computes it alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

import jaxbn.testing

P = jax.P
AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit

Normalize = Callable[..., tuple[jax.Array, Any]]
"""Takes x, mask, scale, bias, statistics and `axis_name`; returns y and statistics."""


class Step(NamedTuple):
    """The results of a step on the whole batch, of shapes `[N, ..., C]` and `[C]`."""

    y: jax.Array
    stats: Any
    dx: jax.Array
    dscale: jax.Array
    dbias: jax.Array


Compiled = Callable[..., Step]
"""Takes x, mask, dy, scale, bias and statistics."""
Style = Callable[[Normalize, int], Compiled]


def _step(normalize: Normalize, x, mask, dy, scale, bias, stats, axis_name=None):
    def apply(x, scale, bias):
        return normalize(x, mask, scale, bias, stats, axis_name=axis_name)

    y, vjp, new = jax.vjp(apply, x, scale, bias, has_aux=True)
    return Step(y, new, *vjp(dy))


def single_device(normalize: Normalize, devices: int) -> Compiled:
    """Runs the whole batch on one device, for every value of `devices`."""
    del devices
    return jax.jit(lambda *args: _step(normalize, *args))


def _mapped(transform) -> Style:
    """Returns a style that takes gradients on each device.

    Each device has its own part of the gradients of scale and bias; they are summed.
    """

    def style(normalize, devices):
        mapped = jax.jit(transform(normalize, devices))

        def run(x, mask, dy, scale, bias, stats):
            shards = [a.reshape(devices, -1, *a.shape[1:]) for a in (x, mask, dy)]
            out = mapped(*shards, scale, bias, stats)
            jaxbn.testing.assert_in_sync(out.stats, axis=0)
            return Step(
                out.y.reshape(x.shape),
                jax.tree.map(lambda leaf: leaf[0], out.stats),
                out.dx.reshape(x.shape),
                out.dscale.sum(0),
                out.dbias.sum(0),
            )

        return run

    return style


_AXES = (0, 0, 0, None, None, None)


def _vmap(normalize, devices):
    del devices
    return jax.vmap(
        lambda *args: _step(normalize, *args, axis_name="d"), _AXES, axis_name="d"
    )


def _pmap(normalize, devices):
    return jax.pmap(
        lambda *args: _step(normalize, *args, axis_name="d"),
        "d",
        in_axes=_AXES,
        devices=jax.devices()[:devices],
    )


def _nn_vmap(normalize, devices):
    """Maps a module with `nn.vmap` and an axis name."""
    del devices

    class Module(nn.Module):
        @nn.compact
        def __call__(self, *args):
            return _step(normalize, *args, axis_name="d")

    mapped = nn.vmap(Module, in_axes=_AXES, axis_name="d", variable_axes={})()
    return lambda *args: mapped.apply({}, *args)


def _unchecked(normalize, devices):
    """Maps with `check_vma=False`: JAX does not know which results are replicated.

    So each device returns its own results.
    """

    def on_shard(x, mask, dy, *whole):
        shard = (a[0] for a in (x, mask, dy))
        out = _step(normalize, *shard, *whole, axis_name="d")
        return jax.tree.map(lambda leaf: leaf[None], out)

    return jax.shard_map(
        on_shard,
        mesh=_mesh(("d",), (devices,)),
        in_specs=(P("d"), P("d"), P("d"), P(), P(), P()),
        out_specs=P("d"),
        check_vma=False,
    )


def _checked(names: tuple[str, ...], sizes: Callable[[int], tuple[int, ...]]) -> Style:
    """Returns a style in which JAX knows what is replicated.

    JAX sums dscale and dbias over the devices itself.

    Args:
      names: the names of the axes of the mesh; the batch is split over all of them.
      sizes: a function that returns the sizes of the axes for a number of devices.
    """
    axis_name = names[0] if len(names) == 1 else names

    def style(normalize, devices):
        shard, whole = P(axis_name), P()
        mapped = jax.shard_map(
            lambda *args: _step(normalize, *args, axis_name=axis_name),
            mesh=_mesh(names, sizes(devices)),
            in_specs=(shard, shard, shard, whole, whole, whole),
            out_specs=Step(shard, whole, shard, whole, whole),
        )
        return jax.jit(mapped)

    return style


def _gradient_outside(
    check_vma: bool,
    names: tuple[str, ...] = ("d",),
    sizes: Callable[[int], tuple[int, ...]] = lambda devices: (devices,),
) -> Style:
    """Returns a style that takes the gradient of the mapped function."""

    def style(normalize, devices):
        shard = P("d")
        mapped = jax.shard_map(
            lambda *args: normalize(*args, axis_name="d"),
            mesh=_mesh(names, sizes(devices)),
            in_specs=(shard, shard, P(), P(), P()),
            out_specs=(shard, P()),
            check_vma=check_vma,
        )

        @jax.jit
        def run(x, mask, dy, scale, bias, stats):
            def apply(x, scale, bias):
                return mapped(x, mask, scale, bias, stats)

            y, vjp, new = jax.vjp(apply, x, scale, bias, has_aux=True)
            return Step(y, new, *vjp(dy))

        return run

    return style


def _jit(axis_type) -> Style:
    """Returns a style without mapped axes: the compiler adds the collectives.

    The statistics are those of the whole batch by construction.
    """

    def style(normalize, devices):
        mesh = _mesh(("d",), (devices,), axis_type)
        compiled = jax.jit(lambda *args: _step(normalize, *args))

        def run(x, mask, dy, scale, bias, stats):
            def put(tree, spec):
                return jax.device_put(tree, jax.sharding.NamedSharding(mesh, spec))

            with jax.set_mesh(mesh):
                split, whole = (x, mask, dy), (scale, bias, stats)
                return compiled(*put(split, P("d")), *put(whole, P()))

        return run

    return style


def _mesh(names, sizes, axis_type=AUTO):
    devices = 1
    for size in sizes:
        devices *= size
    return jax.make_mesh(
        sizes, names, (axis_type,) * len(names), devices=jax.devices()[:devices]
    )


MAPPED: dict[str, Style] = {
    "pmap": _mapped(_pmap),
    "vmap": _mapped(_vmap),
    "nn.vmap": _mapped(_nn_vmap),
    "shard_map unchecked": _mapped(_unchecked),
    "shard_map": _checked(("d",), lambda devices: (devices,)),
    "shard_map, gradient outside": _gradient_outside(True),
    "shard_map unchecked, gradient outside": _gradient_outside(False),
    "data x model": _gradient_outside(True, ("d", "model"), lambda n: (n // 2, 2)),
    "two names": _checked(("a", "b"), lambda devices: (devices // 2, 2)),
}
"""The styles that combine statistics over an axis name."""
JIT: dict[str, Style] = {"jit Auto": _jit(AUTO), "jit Explicit": _jit(EXPLICIT)}
ALL: dict[str, Style] = {"single device": single_device} | MAPPED | JIT
