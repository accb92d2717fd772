import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxbn
from jaxbn import linen
from jaxbn._core import user_warnings


def shown(function):
    """The warnings that Python's default filter shows."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        function()
    return [(each.filename, each.lineno) for each in caught]


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = linen.BatchNorm(use_running_average=False)(nn.Dense(3)(x))
        return nn.remat(Block)()(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(nn.Dense(2)(x))


class DeepNnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([BlockNnx(rngs) for _ in range(3)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class BlockNnx(nnx.Module):
    def __init__(self, rngs):
        self.norm = jaxbn.nnx.BatchNorm(3, rngs=rngs)
        self.second = jaxbn.nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.second(self.norm(x))


ONE = jnp.zeros((1, 3))


def line_of(function):
    """The line in which a function of one line calls the model."""
    return __file__, function.__code__.co_firstlineno + 1


def test_a_linen_model_warns_once_at_the_line_that_calls_it():
    net = Deep()
    variables = net.init(jax.random.key(0), jnp.zeros((2, 3)))

    def call():
        return net.apply(variables, ONE, mutable=["batch_stats"])

    assert shown(call) == [line_of(call)]
    assert shown(jax.jit(call)) == [line_of(call)]
    bound = net.bind(variables, mutable=["batch_stats"])

    def call_bound():
        return bound(ONE)

    assert shown(call_bound) == [line_of(call_bound)]


def test_an_nnx_model_warns_once_at_the_line_that_calls_it():
    model = DeepNnx()

    def call():
        return model(ONE)

    assert shown(call) == [line_of(call)]

    def call_jitted():
        return nnx.jit(lambda model, x: model(x))(model, ONE)

    assert shown(call_jitted) == [line_of(call_jitted)]


def test_every_line_that_calls_a_model_warns():
    model = DeepNnx()

    def first():
        return model(ONE)

    def second():
        return model(ONE)

    assert shown(lambda: (first(), second())) == [line_of(first), line_of(second)]


def test_a_train_step_warns_once():
    net = Deep()
    variables = net.init(jax.random.key(0), jnp.zeros((2, 3)))
    import optax

    from jaxbn import training

    def loss_fn(model, batch, train):
        return {"loss": jnp.sum(model(batch["x"]) ** 2, -1)}

    state = training.TrainState.create(net.apply, variables, optax.sgd(0.1))
    step = training.make_train_step(loss_fn)

    def call():
        return step(state, {"x": ONE})

    assert shown(call) == [line_of(call)]


@pytest.mark.parametrize("name", [{}, {"__name__": None}])
def test_code_without_a_module_warns(name):
    """As `exec` of a string runs it."""
    names = {"jaxbn": jaxbn, "x": ONE, "stats": jaxbn.init_batch_stats(3), **name}
    code = "jaxbn.batch_norm_train(x, None, None, stats)"
    assert shown(lambda: exec(code, names)) == [("<string>", 1)]


def test_initialising_does_not_let_a_warning_come_again():
    net = Deep()
    variables = net.init(jax.random.key(0), jnp.zeros((2, 3)))

    def call():
        for _ in range(2):
            net.apply(variables, ONE, mutable=["batch_stats"])
            net.init(jax.random.key(0), ONE)

    assert len(shown(call)) == 1


def test_the_function_warns_at_its_line():
    stats = jaxbn.init_batch_stats(3)

    def call():
        return jaxbn.batch_norm_train(ONE, None, None, stats)

    assert shown(call) == [line_of(call)]
    with pytest.warns(UserWarning, match=r"one value per channel.*`jaxbn.diagnose`"):
        call()


class InALoop:
    """A loop body that records the result of `is_in_loop`."""

    def __init__(self):
        self.found = []

    def __call__(self, carry, x=None):
        self.found.append(user_warnings.is_in_loop())
        return carry, x


def test_is_in_a_loop_of_jax():
    note = InALoop()
    jax.lax.scan(note, 0.0, jnp.zeros(2))
    jax.lax.fori_loop(0, 2, lambda i, carry: note(carry)[0], 0.0)
    jax.lax.while_loop(lambda c: c < 0, lambda carry: note(carry)[0], 0.0)
    jax.jit(lambda x: jax.lax.scan(jax.jit(note), x, jnp.zeros(2)))(0.0)
    assert note.found
    assert all(note.found)


def test_is_in_no_loop_of_jax():
    note = InALoop()
    jax.jit(note)(0.0)
    jax.vmap(note)(jnp.zeros(2))
    jax.lax.cond(True, lambda x: note(x)[0], lambda x: x, 0.0)

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            return note(carry, x)

    nn.scan(Scanned, length=2)().apply({}, 0.0, None)
    nnx.scan(note, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(0.0, jnp.zeros(2))
    assert note.found
    assert not any(note.found)
