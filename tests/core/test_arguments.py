import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxbn
import jaxbn.testing
from jaxbn import linen

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)

STATS = jaxbn.BatchStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0]))

SCALE, BIAS = np.float32([1, 2, 3]), np.float32([4, 5, 6])

FUNCTIONS = {
    "train": jaxbn.batch_norm_train,
    "inference": jaxbn.batch_norm_inference,
}


class ErrorTest(parameterized.TestCase):
    @parameterized.product(
        function=tuple(FUNCTIONS),
        bad=(
            ({"scale": np.ones(4)}, r"`scale` must have the shape \(3,\).*got \(4,\)"),
            ({"bias": np.ones((1, 3))}, r"`bias` must have .* got \(1, 3\)"),
            (
                {"batch_stats": jaxbn.init_batch_stats(8)},
                r"`batch_stats.mean` .*\(8,\)",
            ),
            ({"epsilon": -1e-3}, r"`epsilon` .* must be >= 0, got -0.001"),
            ({"axis": 2}, r"`axis` must lie in \[-2, 2\).*got 2"),
            ({"axis": (0, -2)}, r"`axis` must name each axis once, got \(0, -2\)"),
        ),
    )
    def test_value_errors(self, function, bad):
        change, message = bad
        arguments = {"scale": SCALE, "bias": BIAS, "batch_stats": STATS} | change
        with pytest.raises(ValueError, match=message):
            FUNCTIONS[function](X, **arguments)

    @parameterized.parameters(*FUNCTIONS)
    def test_type_errors(self, function):
        function = FUNCTIONS[function]
        with pytest.raises(TypeError, match=r"`batch_stats` must be .* got dict"):
            function(X, None, None, STATS._asdict())
        with pytest.raises(TypeError, match=r"`scale` and `bias` must be real"):
            function(X, SCALE * 1j, None, STATS)
        with pytest.raises(TypeError, match=r"`epsilon` must be a number known"):
            jax.jit(lambda e: function(X, None, None, STATS, epsilon=e))(0.1)

    @parameterized.parameters(1.5, -0.1, float("nan"))
    def test_momentum(self, momentum):
        with pytest.raises(ValueError, match=r"`momentum` .* \[0, 1\], got"):
            jaxbn.batch_norm_train(X, None, None, STATS, momentum=momentum)

    @parameterized.parameters(*FUNCTIONS)
    def test_complex_needs_a_complex_mean(self, function):
        with pytest.raises(TypeError, match=r"`batch_stats.mean` must be complex"):
            FUNCTIONS[function](X + 1j, None, None, STATS)

    @parameterized.parameters(*FUNCTIONS)
    def test_dtype_of_integers(self, function):
        with pytest.raises(TypeError, match=r"`dtype` must be floating.* got int32"):
            FUNCTIONS[function](X, None, None, STATS, dtype=jnp.int32)

    @parameterized.product(function=tuple(FUNCTIONS), activation=("relu", "gelu"))
    def test_activation_of_complex_values(self, function, activation):
        stats = jaxbn.init_batch_stats(3, jnp.complex64)
        with pytest.raises(TypeError, match="`activation` needs real `x`, got complex"):
            FUNCTIONS[function](X + 1j, None, None, stats, activation=activation)

    @parameterized.parameters(
        ((8, 3), (4, 1), r"must broadcast .*got \("),
        ((8, 3), (8,), r"must broadcast .*got \("),
        ((3, 3), (3,), "could belong to"),  # Of examples or of channels?
        ((3, 3, 3), (3, 3), "could belong to"),  # [N, T] or [T, C]?
        ((8, 3), (8, 3, 1), r"must broadcast .*got \("),
    )
    def test_mask_shape(self, shape, mask, message):
        call = functools.partial(
            jaxbn.batch_norm_train, np.ones(shape), None, None, STATS
        )
        with pytest.raises(ValueError, match=f"`mask` .*{message}"):
            call(mask=np.ones(mask, bool))

    @parameterized.parameters(
        ((8, 3), (3,)), ((8, 3), (1,)), ((8, 5, 3), (5, 1)), ((4, 3, 3), (3, 3))
    )
    def test_mask_of_the_last_axes(self, shape, mask):
        rng = np.random.default_rng(0)
        x = rng.standard_normal(shape, np.float32)
        mask = np.arange(np.prod(mask)).reshape(mask) != 1
        train = functools.partial(jaxbn.batch_norm_train, x, None, None, STATS)
        whole = np.broadcast_to(mask, shape)
        # The sums of a whole mask may be made in another order.
        chex.assert_trees_all_close(train(mask=mask), train(mask=whole), rtol=1e-5)

    def test_not_a_number(self):
        with pytest.raises(TypeError, match="`momentum` must be a number"):
            jaxbn.batch_norm_train(X, None, None, STATS, momentum=None)
        with pytest.raises(ValueError, match="`x` must have a channel axis"):
            jaxbn.batch_norm_train(1.0, None, None, STATS)

    def test_warning_points_at_the_line_of_the_user(self):
        with pytest.warns(UserWarning, match="one value per channel") as caught:
            jaxbn.batch_norm_train(X[:1], None, None, STATS)
        assert caught[0].filename == __file__


def make_batch(shape=(6, 4, 3)):
    rng = np.random.default_rng(0)
    x, residual, dy = rng.standard_normal((3, *shape)).astype(np.float32)
    return 1 + x, residual, dy, np.float32([1, 2, 0.5]), np.float32([0, 1, -1])


def train(**options):
    return jaxbn.batch_norm_train(X, SCALE, BIAS, STATS, **options)[0]


class OutputTest(parameterized.TestCase):
    def test_unknown_activation(self):
        for bad in ("tanh", ["relu"]):
            with pytest.raises(ValueError, match=r"`activation` must be None or one"):
                train(activation=bad)

    def test_residual(self):
        with pytest.raises(ValueError, match=r"`residual` .* got \(8,\)"):
            train(residual=X[:, 0])
        with pytest.raises(TypeError, match=r"`residual` must be real"):
            train(residual=X * 1j)

    def test_in_place(self):
        with pytest.raises(ValueError, match=r"`in_place` needs .* got 'relu'"):
            train(activation="relu", in_place=True)
        with pytest.raises(TypeError, match=r"`in_place` must be True or False"):
            train(in_place=jnp.array(True))
        layer = linen.BatchNorm(True, in_place=True, activation="silu")
        with pytest.raises(ValueError, match=r"`in_place` needs"):
            layer.init(jax.random.key(0), X)


class VarianceTest(parameterized.TestCase):
    def test_errors(self):
        with pytest.raises(
            ValueError, match=r"`variance` must be one of .* got 'slow'"
        ):
            train(variance="slow")
        layer = linen.BatchNorm(False, variance="unconditional", use_fast_variance=True)
        with pytest.raises(ValueError, match=r"`use_fast_variance` means .*'uncondit"):
            layer.init(jax.random.key(0), X)
