import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbn import testing, training
from jaxbn.training import gradient
from tests.small_net import BATCH, Net, loss_fn, make_state, make_variables


class TrainStepTest(chex.TestCase):
    def test_names_are_not_split_into_letters(self):
        for options in ({"rngs": "dropout"}, {"mutable": "losses"}):
            with pytest.raises(TypeError, match="must be a sequence of names, got"):
                training.make_train_step(loss_fn, **options)

    def test_parts_of_a_step(self):
        state = make_state()
        gradient = jax.jit(
            lambda state: training.value_and_grad(loss_fn)(state, BATCH)[:3]
        )(state)
        expected, _ = training.make_train_step(loss_fn)(make_state(), BATCH)
        actual = state.apply_gradients(grads=gradient[0], batch_stats=gradient[2])
        chex.assert_trees_all_close(
            jax.tree.leaves((actual.params, actual.batch_stats, actual.step)),
            jax.tree.leaves((expected.params, expected.batch_stats, expected.step)),
            rtol=1e-6,
            atol=1e-7,  # A parameter near 0 has the rounding of its update.
        )

    def test_further_collections_and_random_streams(self):
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

        net = Noisy()
        variables = make_variables(net)
        state = training.TrainState.create(
            net.apply, {"params": variables["params"]}, optax.sgd(0.1)
        )
        step = training.make_train_step(with_loss, rngs=("noise",), mutable=("losses",))
        sizes = []
        for _ in range(2):
            state, metrics = step(state, BATCH)
            sizes.append(float(metrics["size"]))
        assert sizes[0] != sizes[1]
        assert all(0.3 < size < 3 for size in sizes)

    def test_other_methods_of_the_model(self):
        class Halves(Net):
            def encode(self, x, train):
                return 2 * self(x, train)

        def encoded(model, batch, train):
            return {"loss": jnp.sum(model.encode(batch["x"], train) ** 2, -1)}

        net = Halves()
        _, metrics = training.make_train_step(encoded)(make_state(net), BATCH)
        assert float(metrics["loss"]) > 0

    def test_params_that_vary_already(self):
        mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        step = training.make_train_step(loss_fn, axis_name="d")

        def varying(state, batch):
            mark = lambda p: jax.lax.pcast(p, ("d",), to="varying")  # noqa: E731
            marked = state.replace(params=jax.tree.map(mark, state.params))
            new, metrics = step(marked, batch)
            return jax.tree.map(lambda p: jax.lax.pmean(p, "d"), new.params), metrics

        P = jax.P
        params, _ = jax.jit(
            jax.shard_map(
                varying, mesh=mesh, in_specs=(P(), P("d")), out_specs=(P(), P())
            )
        )(make_state(Net(batch_norm=False)), BATCH)
        expected, _ = training.make_train_step(loss_fn)(
            make_state(Net(batch_norm=False)), BATCH
        )
        chex.assert_trees_all_close(params, expected.params, rtol=1e-5)

    @pytest.mark.exhaustive
    def test_line_search_is_the_same_on_all_devices(self):
        """Under vmap a sum over devices is not differentiated as the steps need it."""
        states = []
        for axis_name in (None, "d"):
            step = training.make_train_step(loss_fn, axis_name=axis_name)
            state = make_state(Net(batch_norm=False), optax.lbfgs(1.0))
            batch = BATCH
            if axis_name:
                batch = {k: v.reshape(4, 3, *v.shape[1:]) for k, v in BATCH.items()}
                step = jax.vmap(step, (None, 0), axis_name="d")
            for _ in range(2):
                new, _ = step(state, batch)
                first = jax.tree.map(lambda leaf: leaf[0], new) if axis_name else new
                if axis_name:
                    testing.assert_in_sync(new.params, axis=0)
                state = first
            states.append(state.params)
        chex.assert_trees_all_close(*states, rtol=1e-3, atol=1e-4)


def test_a_function_with_the_gradient_it_is_given():
    value_fn = gradient.with_gradient(lambda x: (x[0], 7 * jnp.arange(3.0)))
    x = jnp.ones(3)
    assert float(value_fn(x)) == 1
    actual = jax.grad(lambda x: 3 * value_fn(x))(x)
    np.testing.assert_array_equal(actual, 21 * np.arange(3))
