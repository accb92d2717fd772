"""Second derivatives where elements outside the mask hold anything at all.

The right value is a float64 derivative of the textbook formula, which never reads those
elements. The loss leaves their outputs out.
"""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as numpy_strategies

import jaxbn
from jaxbn import sync
from jaxbn._core import affine

SHAPE = (6, 2, 3)
EXAMPLES = np.arange(6)[:, None, None] < 4
# The last channel has one element fewer.
ELEMENTS = np.broadcast_to(EXAMPLES, SHAPE).copy()
ELEMENTS[0, 0, 2] = False
MASKS = {"examples": EXAMPLES, "elements": ELEMENTS}

# With 3e38, near the largest float32, what is computed of an element may overflow.
CONTENT = numpy_strategies.arrays(
    np.float32,
    SHAPE,
    elements=st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, -1e12, 0.5]),
    fill=st.nothing(),
)

# Activation, whether there is a residual, and `in_place`.
QUICK = (
    (None, False, False),
    ("relu", True, False),
    ("leaky_relu", True, True),
    ("gelu", True, False),
)
EVERY_CASE = [
    (activation, has_residual, in_place)
    for in_place, activations in (
        (False, (None, *affine.ACTIVATIONS)),
        (True, affine.INVERTIBLE),
    )
    for activation in activations
    for has_residual in (False, True)
]
CASES = [
    pytest.param(
        *case,
        mask,
        marks=() if case in QUICK and mask == "elements" else pytest.mark.exhaustive,
    )
    for case in EVERY_CASE
    for mask in MASKS
    # A mask of examples is also one of elements; few cases suffice for its shape.
    if mask == "elements" or case in QUICK
]
NAMES = ("activation", "has_residual", "in_place", "mask")


def second_derivatives(loss, point, along):
    """The Hessian times a direction in three ways, and its quadratic form.

    Args:
      loss: a scalar function of a tuple.
      point: the tuple where the derivatives are taken.
      along: the direction.
    """

    def forward(point):
        return jax.jvp(loss, (point,), (along,))[1]

    def product(point):
        gradient = jax.grad(loss)(point)
        return sum(jnp.sum(a * b) for a, b in zip(gradient, along, strict=True))

    return {
        "reverse over reverse": jax.grad(product)(point),
        "forward over reverse": jax.jvp(jax.grad(loss), (point,), (along,))[1],
        "reverse over forward": jax.grad(forward)(point),
        "forward over forward": jax.jvp(forward, (point,), (along,))[1],
    }


def loss_of(function, mask, weights):
    def loss(point):
        return jnp.sum(jnp.where(mask, jnp.sin(function(*point)) * weights, 0))

    return loss


def plain(x, scale, bias, residual, mask, activation, epsilon=1e-5):
    """Computes the textbook formula with the moments of the masked elements."""
    axes = tuple(range(x.ndim - 1))
    mean, var = plain_moments(x, mask)
    centered = jnp.where(mask, x - jnp.expand_dims(mean, axes), 0)
    z = centered / jnp.expand_dims(jnp.sqrt(var + epsilon), axes)
    z = z * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes) + residual
    return affine.ACTIVATIONS[activation](z) if activation else z


def plain_moments(x, mask):
    axes = tuple(range(x.ndim - 1))
    mask = jnp.broadcast_to(mask, x.shape)
    count = jnp.sum(mask, axes)
    mean = jnp.sum(jnp.where(mask, x, 0), axes) / count
    centered = jnp.where(mask, x - jnp.expand_dims(mean, axes), 0)
    return mean, jnp.sum(centered**2, axes) / count


def plain_groups(x, scale, bias, residual, mask, activation, groups):
    """Applies `plain` to each group of neighbouring examples."""
    parts = (jnp.split(a, groups) for a in (x, residual, mask))
    return jnp.concatenate(
        [
            plain(x, scale, bias, r, m, activation)
            for x, r, m in zip(*parts, strict=True)
        ]
    )


@functools.cache
def batch(has_residual=True):
    """A point, a direction, and the weights of a loss, in float64."""
    rng = np.random.default_rng(3)
    x, residual, dx, dresidual, weights = rng.standard_normal((5, *SHAPE))
    scale, bias, dscale, dbias = rng.standard_normal((4, 3))
    point, along = (1 + 2 * x, 1 + 0.2 * scale, bias), (dx, dscale, dbias)
    if has_residual:
        point, along = (*point, residual), (*along, dresidual)
    return point, along, weights


@functools.cache
def expected(activation, has_residual, mask, groups=1):
    """The second derivatives of the textbook formula in float64."""
    point, along, weights = batch(has_residual)

    def function(x, scale, bias, residual=None):
        residual = jnp.zeros(SHAPE) if residual is None else residual
        return plain_groups(x, scale, bias, residual, MASKS[mask], activation, groups)

    with jax.enable_x64(True):
        loss = loss_of(function, MASKS[mask], weights)
        derive = jax.jit(functools.partial(second_derivatives, loss))
        return jax.tree.map(np.asarray, derive(point, along))


@functools.cache
def derivatives(function, mask):
    """A compiled function from point and direction to second derivatives.

    `function` must be the same object for the same options, so that each is compiled
    once and not for each example.
    """
    loss = loss_of(function, MASKS[mask], np.float32(batch()[2]))
    return jax.jit(functools.partial(second_derivatives, loss))


@functools.cache
def fused(mask, **options):
    """Returns the op with such options."""

    def function(x, scale, bias, residual=None):
        stats = jaxbn.init_batch_stats(3, sync=options.get("sync"))
        y, _ = jaxbn.batch_norm_train(
            x, scale, bias, stats, residual=residual, mask=MASKS[mask], **options
        )
        return y

    return function


def narrow(arrays, mask, *contents):
    """The arrays in float32, those of the shape of `x` with content under the mask."""
    arrays, contents = [np.float32(array) for array in arrays], iter(contents)
    return tuple(
        np.where(MASKS[mask], array, next(contents)) if array.shape == SHAPE else array
        for array in arrays
    )


def assert_right(actual, right):
    # Float32 rounding of values up to 10. It was 1e-6 where this was written.
    chex.assert_trees_all_close(actual, right, rtol=1e-4, atol=2e-5)


@pytest.mark.first_case
@pytest.mark.parametrize(NAMES, CASES)
@hypothesis.given(of_x=CONTENT, of_residual=CONTENT)
@hypothesis.settings(deadline=None, max_examples=10)
def test_of_the_op(activation, has_residual, in_place, mask, of_x, of_residual):
    point, along, _ = batch(has_residual)
    function = fused(mask, activation=activation, in_place=in_place)
    point = narrow(point, mask, of_x, of_residual)
    actual = derivatives(function, mask)(point, jax.tree.map(np.float32, along))
    assert_right(actual, expected(activation, has_residual, mask))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "mask", [pytest.param("examples", marks=pytest.mark.exhaustive), "elements"]
)
@pytest.mark.parametrize(
    ("policy", "group_size"),
    [
        (None, 3),  # Two groups, each by its own moments.
        (sync.Stale(backward=False), 6),  # One worker, which merges with a memory.
    ],
)
def test_of_groups_and_policies(policy, group_size, mask):
    point, along, _ = batch()
    function = fused(mask, activation="gelu", sync=policy, group_size=group_size)
    for content in (np.nan, np.inf, 1e30):
        hidden = np.full(SHAPE, content, np.float32)
        actual = derivatives(function, mask)(
            narrow(point, mask, hidden, hidden), jax.tree.map(np.float32, along)
        )
        assert_right(actual, expected("gelu", True, mask, groups=6 // group_size))


@pytest.mark.exhaustive
@hypothesis.given(of_x=CONTENT, of_residual=CONTENT)
@hypothesis.settings(deadline=None, max_examples=10)
def test_of_a_mapped_axis(of_x, of_residual):
    point, along, _ = batch()
    point = narrow(point, "elements", of_x, of_residual)
    actual = derivatives(mapped, "elements")(point, jax.tree.map(np.float32, along))
    assert_right(actual, expected("silu", True, "elements"))


def mapped(x, scale, bias, residual):
    """The op on two devices of three examples each."""

    def shard(x, residual, mask):
        return jaxbn.batch_norm_train(
            x,
            scale,
            bias,
            jaxbn.init_batch_stats(3),
            mask=mask,
            residual=residual,
            activation="silu",
            axis_name="devices",
        )[0]

    mask = jnp.asarray(ELEMENTS)
    shards = (a.reshape(2, 3, *a.shape[1:]) for a in (x, residual, mask))
    return jax.vmap(shard, axis_name="devices")(*shards).reshape(x.shape)


@pytest.mark.first_case
@pytest.mark.parametrize("mask", MASKS)
@hypothesis.given(of_x=CONTENT, of_tangent=CONTENT)
@hypothesis.settings(deadline=None, max_examples=10)
def test_of_moments(mask, of_x, of_tangent):
    (x, *_), (dx, *_), _ = batch()
    with jax.enable_x64(True):
        right = jax.tree.map(np.asarray, of_moments(plain_moments, mask)((x,), (dx,)))
    derivatives, point = of_moments(jaxbn_moments, mask), narrow((x,), mask, of_x)
    assert_right(derivatives(point, (np.float32(dx),)), right)
    # A tangent may hold anything as well, where the direction is not multiplied by the
    # gradient.
    for name in ("reverse over forward", "forward over forward"):
        actual = derivatives(point, narrow((dx,), mask, of_tangent))
        assert_right(actual[name], right[name])


def jaxbn_moments(x, mask):
    made = jaxbn.batch_moments(x, mask=mask)
    return made.mean, made.var


@functools.cache
def of_moments(moments, mask):
    def loss(point):
        mean, var = moments(*point, MASKS[mask])
        return jnp.sum(jnp.sin(mean) + jnp.sin(var) * mean)

    return jax.jit(functools.partial(second_derivatives, loss))


@pytest.mark.first_case
@pytest.mark.parametrize(NAMES, CASES)
def test_tangents_that_are_not_finite(activation, has_residual, in_place, mask):
    """The logarithm of 0 is minus infinity, and so is its tangent.

    The derivatives are by scale and bias, because the gradient of the logarithm itself
    is NaN there. The tangent of a residual is added as it is, so silu and gelu multiply
    by it. It is finite here for them, because masking it would split a kernel on a TPU.
    """
    point, along, weights = batch(has_residual)
    x, scale, bias, *residual = jax.tree.map(np.float32, point)
    dx, _, _, *dresidual = jax.tree.map(np.float32, along)
    function = fused(mask, activation=activation, in_place=in_place)
    added = activation in affine.NEGATIVE_SLOPES

    def loss(*args):
        # The tangent of a residual is added, so that the output's is infinite too. A
        # loss must select before it computes anything of the output.
        y = jnp.where(MASKS[mask], function(*args), 0)
        return jnp.sum(jnp.sin(y) * np.float32(weights))

    def slope(parameters, powers):
        """The derivative of the loss as all that is not a parameter moves."""

        def along_path(t):
            x, *residual = (
                jnp.log(power + t * move)
                for power, move in zip(powers, (dx, *dresidual), strict=True)
            )
            return loss(x, *parameters, *residual)

        return jax.jvp(along_path, (0.0,), (1.0,))[1]

    @jax.jit
    def derivatives(powers):
        by_parameters = jax.grad(slope)((scale, bias), powers)
        moving = jax.jvp(lambda p: slope(p, powers), ((scale, bias),), ((bias, scale),))
        return by_parameters, moving

    finite, infinite = (
        derivatives(
            [
                np.where(MASKS[mask], np.exp(x), fill),
                *(
                    np.where(MASKS[mask], np.exp(a), fill if added else 1)
                    for a in residual
                ),
            ]
        )
        for fill in np.float32([1, 0])
    )
    chex.assert_trees_all_close(infinite, finite, rtol=1e-5, atol=1e-5)
