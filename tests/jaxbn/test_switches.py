"""The table of all switches of one call."""

import itertools
from typing import NamedTuple

import jax
import pytest

from jaxbn import switches

NOT_FROZEN = switches.Frozen()


class Layer(NamedTuple):
    update_running_average: bool | None = None
    train_affine: bool = True


def test_of_the_call_else_of_the_layer_else_the_default():
    for use, own, given in itertools.product([True, False], *[[None, True, False]] * 2):
        layer = Layer(update_running_average=own)
        on = switches.switches(layer, use, given, None, NOT_FROZEN)
        expected = given if given is not None else own
        assert on.update_running_average == (not use if expected is None else expected)
        assert on.use_running_average == use
    for own, given in itertools.product([True, False], [None, True, False]):
        on = switches.switches(Layer(None, own), True, None, given, NOT_FROZEN)
        assert on.train_scale == on.train_bias == (own if given is None else given)


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=4)))
@pytest.mark.parametrize("use", [True, False])
def test_what_is_frozen_overrules_each_alone(frozen, use):
    frozen = switches.Frozen(*frozen)
    on = switches.switches(Layer(), use, None, True, frozen)
    assert on.use_running_average == (use or frozen.statistics)
    # Frozen statistics may go on to move in training, and do not in evaluation.
    assert on.update_running_average == (not use and not frozen.updates)
    assert on.train_scale == (not frozen.scale)
    assert on.train_bias == (not frozen.bias)
    on = switches.switches(Layer(True, False), use, True, None, frozen)
    assert on.update_running_average == (not frozen.updates)
    assert not on.train_scale
    assert not on.train_bias


def test_each_must_be_known():
    with pytest.raises(
        TypeError, match="`train_affine` must be True or False, got 'x'"
    ):
        switches.switches(Layer(), True, None, "x", NOT_FROZEN)
    with pytest.raises(TypeError, match="`update_running_average` must be known"):
        jax.jit(lambda on: switches.switches(Layer(), True, on, None, NOT_FROZEN))(True)
