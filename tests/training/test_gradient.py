"""The gradient alone, and what a Linen model may do within a step."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxbn import training
from tests.training.both_apis import BATCH, Linen, Net, init_variables, loss_fn


@pytest.mark.parametrize("options", [{"rngs": "dropout"}, {"mutable": "losses"}])
def test_names_are_not_split_into_letters(options):
    with pytest.raises(TypeError, match="must be a sequence of names, got"):
        training.make_train_step(loss_fn, **options)


@pytest.mark.first_case
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_parts_of_a_step(micro_batches):
    made, state = Linen(), Linen().state
    made.take(training.make_train_step(loss_fn, micro_batches=micro_batches), BATCH)
    take = training.value_and_grad(loss_fn, micro_batches=micro_batches)
    grads, _, batch_stats, _ = jax.jit(lambda s: tuple(take(s, BATCH)))(state)
    actual = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    chex.assert_trees_all_close(
        jax.tree.leaves((actual.params, actual.batch_stats, actual.step)),
        jax.tree.leaves((made.params, made.batch_stats, made.step)),
        rtol=1e-6,
        atol=1e-7,  # A parameter near 0 has the rounding of its update.
    )


def test_further_collections_and_random_streams():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train, mask=None):
            noise = jax.random.normal(self.make_rng("noise"), x.shape)
            self.sow("losses", "size", jnp.mean(noise**2))
            return nn.Dense(3)(x + noise)

    def with_loss(model, batch, train):
        values = loss_fn(model, batch, train)
        (size,) = model.variables["losses"]["size"]
        sizes = jnp.full_like(values["loss"], size)
        return {**values, "loss": values["loss"] + size, "size": sizes}

    params = init_variables(Noisy())["params"]
    state = training.TrainState.create(
        Noisy().apply, {"params": params}, optax.sgd(0.1)
    )
    step = training.make_train_step(with_loss, rngs=("noise",), mutable=("losses",))
    sizes = []
    for _ in range(2):
        state, metrics = step(state, BATCH)
        sizes.append(float(metrics["size"]))
    assert sizes[0] != sizes[1]
    assert all(0.3 < size < 3 for size in sizes)


def test_other_methods_of_the_model():
    class Halves(Net):
        def encode(self, x, train):
            return 2 * self(x, train)

    def encoded(model, batch, train):
        return {"loss": jnp.sum(model.encode(batch["x"], train) ** 2, -1)}

    variables = init_variables(Halves())
    state = training.TrainState.create(Halves().apply, variables, optax.sgd(0.1))
    assert float(training.make_train_step(encoded)(state, BATCH)[1]["loss"]) > 0


def test_params_that_vary_already():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    step = training.make_train_step(loss_fn, axis_name="d")

    def varying(state, batch):
        mark = lambda p: jax.lax.pcast(p, ("d",), to="varying")  # noqa: E731
        marked = state.replace(params=jax.tree.map(mark, state.params))
        new, metrics = step(marked, batch)
        return jax.tree.map(lambda p: jax.lax.pmean(p, "d"), new.params), metrics

    specs = {"in_specs": (jax.P(), jax.P("d")), "out_specs": jax.P()}
    run = jax.jit(jax.shard_map(varying, mesh=mesh, **specs))
    params, _ = run(Linen(batch_norm=False).state, BATCH)
    alone = Linen(batch_norm=False)
    alone.take(training.make_train_step(loss_fn), BATCH)
    chex.assert_trees_all_close(params, alone.params, rtol=1e-5, atol=1e-7)
