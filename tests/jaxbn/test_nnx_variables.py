import chex
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbn import BatchStats, nnx_variables, sync_policies
from jaxbn.nnx import BatchNorm


def make_layer(**options):
    return BatchNorm(3, rngs=nnx.Rngs(0), **options)


def test_read_and_write():
    layer = make_layer()
    new = BatchStats(jnp.arange(3.0), jnp.full(3, 2.0))
    nnx_variables.write(layer, new)
    chex.assert_trees_all_equal(nnx_variables.read(layer, BatchStats), new)
    complex_mean = new._replace(mean=new.mean + 1j)
    nnx_variables.write(layer, complex_mean)
    assert layer.mean[...].dtype == jnp.complex64


def test_values_of_states_by_path():
    model = nnx.Sequential(make_layer(), make_layer(sync=sync_policies.Stale()))
    state = nnx.state(model, nnx_variables.ANY_SYNC)
    values = nnx_variables.sync_values(state)
    assert list(values) == ["layers/1"]
    assert set(values["layers/1"]) == {"own", "said", "everyone", "heard"}
    doubled = jax.tree.map(lambda leaf: leaf + 1, values)
    nnx.update(model, nnx_variables.with_sync_values(state, doubled))
    chex.assert_trees_all_equal(
        nnx_variables.read_sync(model.layers[1]), doubled["layers/1"]
    )
    own = nnx.state(model, nnx_variables.OwnBatchSync)
    assert {leaf.shape for leaf in jax.tree.leaves(own)} == {(1, 3)}


def test_only_where_a_policy_remembers():
    for policy in (None, sync_policies.Local()):
        assert not nnx.state(make_layer(sync=policy), nnx_variables.ANY_SYNC)
    layer = make_layer(sync=sync_policies.FrozenAfter(1))
    for _ in range(2):
        layer(jnp.ones((4, 3)) * jnp.arange(4.0)[:, None])
    assert nnx_variables.read_sync(layer)["step"] == 1
    layer.eval()
    layer(jnp.ones((4, 3)))
    assert nnx_variables.read_sync(layer)["step"] == 1
