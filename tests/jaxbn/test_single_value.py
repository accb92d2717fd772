import warnings

import jax
import jax.numpy as jnp
import pytest

from jaxbn import linen, single_value
from jaxbn.core import reduction

PAIRS = ((0, 1), (2, 3))


@pytest.mark.parametrize(
    ("shape", "devices", "single"),
    [
        ((1, 3), None, True),
        ((1, 1, 1, 3), None, True),
        ((2, 3), None, False),
        ((1, 2, 3), None, False),
        ((1, 3), reduction.Devices("d", 4), False),
        ((1, 3), reduction.Devices("d", 4, PAIRS), False),
        ((1, 3), reduction.Devices("d", 4, ((0,), (1,), (2,), (3,))), True),
        ((1, 3), reduction.Devices("d", 1), True),
        ((0, 3), None, False),
    ],
)
def test_values_of_the_whole_group_count(shape, devices, single):
    how = reduction.Reduction((len(shape) - 1,), devices=devices)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        single_value.warn(jnp.zeros(shape), how, "bn")
    assert len(caught) == single
    if single:
        assert f"`x` of layer 'bn', of shape {shape}, has one" in str(caught[0].message)


def test_points_at_the_line_of_the_user():
    layer = linen.BatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), jnp.zeros((2, 3)))
    with pytest.warns(UserWarning, match="one value per channel") as caught:
        jax.jit(lambda x: layer.apply(variables, x, mutable=["batch_stats"]))(
            jnp.zeros((1, 3))
        )
    assert {each.filename for each in caught} == {__file__}
