"""How many collectives a layer costs, read from the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbn
from experiments.compilers import hlo
from jaxbn._core import collectives
from tests import styles

C = 64
P = jax.P


def compiled(style, *, backward, stats_too=True, mask=False, **options):
    """The collectives of one layer, forward or forward and backward."""
    x = np.random.default_rng(0).standard_normal((64, 4, C)).astype(np.float32)
    masks = np.ones((64, 1, 1), bool)
    stats = jaxbn.init_batch_stats(C)
    kind = styles.EXPLICIT if style == "jit Explicit" else styles.AUTO
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))

    def forward(x, m, scale, bias):
        y, new = jaxbn.batch_norm_train(
            x, scale, bias, stats, mask=m if mask else None, **options
        )
        return y, (new if stats_too else None)

    def loss(x, m, scale, bias):
        y, new = forward(x, m, scale, bias)
        return jnp.sum(jnp.sin(y)), new

    function = jax.grad(loss, (0, 2, 3), has_aux=True) if backward else forward
    shard, whole = P("d"), P()
    if style.startswith("shard_map"):
        checked = style == "shard_map"
        affine = whole if checked else shard
        new = whole if stats_too else None
        outputs = ((shard, affine, affine), new) if backward else (shard, new)
        function = jax.shard_map(
            function, mesh=mesh, in_specs=(shard, shard, whole, whole),
            out_specs=outputs, check_vma=checked,
        )  # fmt: skip
    specs = (shard, shard, whole, whole)
    args = [
        jax.device_put(a, jax.sharding.NamedSharding(mesh, spec))
        for a, spec in zip((x, masks, np.ones(C), np.zeros(C)), specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(*args).compile().as_text()
    return hlo.collectives(text)


@pytest.mark.first_case
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("style", ["shard_map", "shard_map unchecked"])
def test_one_forward_one_backward(style, mask):
    options = {"mask": mask, "axis_name": "d"}
    forward = compiled(style, backward=False, **options)
    assert [(c.op, c.conditional) for c in forward] == [("all-reduce", False)]
    assert forward[0].bytes == 8 * (3 * C + 1) * 4  # A row per device.
    both = compiled(style, backward=True, **options)
    assert len(both) == 2
    # The means of dy and x_hat * dy; checked, also dscale or dbias, added up at once.
    assert 2 * C * 4 <= both[1].bytes <= 4 * C * 4


@pytest.mark.parametrize("style", ["jit Auto", "jit Explicit"])
def test_one_forward_one_backward_and_one_where_ill_conditioned(style):
    forward = compiled(style, backward=False)
    assert [c.conditional for c in forward].count(False) == 1
    assert [c.conditional for c in forward].count(True) == 1
    both = compiled(style, backward=True)
    assert [c.conditional for c in both].count(False) == 2
    assert len(both) == 3


def test_many_devices_need_no_rows(monkeypatch):
    monkeypatch.setattr(collectives, "MAX_ROWS", 4)
    forward = compiled("shard_map", backward=False, axis_name="d")
    assert [c.bytes for c in forward if not c.conditional] == [(2 * C + 1) * 4]
    assert [c.bytes for c in forward if c.conditional] == [2 * C * 4]


def test_many_devices_alone_need_no_rows(monkeypatch):
    monkeypatch.setattr(collectives, "MAX_ROWS", 4)
    options = {"axis_name": "d", "group_size": "local"}
    forward = compiled("shard_map", backward=False, **options)
    assert [c.bytes for c in forward] == [(2 * C + 1) * 4, 2 * C * 4]
    assert not any(c.conditional for c in forward)


def test_exactly_as_many_devices_as_rows(monkeypatch):
    monkeypatch.setattr(collectives, "MAX_ROWS", styles.DEVICES)
    (forward,) = compiled("shard_map", backward=False, axis_name="d")
    assert forward.bytes > styles.DEVICES * 2 * C * 4


@pytest.mark.first_case
@pytest.mark.parametrize("style", ["jit Auto", "jit Explicit"])
@pytest.mark.parametrize("size", [8, 4, "local"])
def test_groups_that_follow_the_shards_need_none(style, size):
    options = {"stats_too": False, "group_size": size}
    assert compiled(style, backward=False, **options) == []
    backward = compiled(style, backward=True, **options)
    # It adds up dscale and dbias, as in any data-parallel layer.
    assert [c.bytes for c in backward] == [2 * C * 4]


@pytest.mark.parametrize("group_size", [2, "local"])
def test_groups_of_devices(group_size):
    options = {"axis_name": "d", "group_size": group_size}
    assert len(compiled("shard_map", backward=False, **options)) == 1
    no_stats = compiled("shard_map", backward=False, stats_too=False, **options)
    assert len(no_stats) == (0 if group_size == "local" else 1)
