"""The table of all switches of one call."""

import itertools
from typing import NamedTuple

import jax
import pytest

from jaxbn._layers import switches

NOT_FROZEN = switches.Frozen()


class Layer(NamedTuple):
    update_running_average: bool | None = None


def test_of_the_call_else_of_the_layer_else_the_default():
    for use, own, given in itertools.product([True, False], *[[None, True, False]] * 2):
        layer = Layer(update_running_average=own)
        on = switches.switches(layer, use, given, NOT_FROZEN)
        expected = given if given is not None else own
        assert on.update_running_average == (not use if expected is None else expected)
        assert on.use_running_average == use


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=4)))
@pytest.mark.parametrize("use", [True, False])
def test_what_is_frozen_overrules_each_alone(frozen, use):
    frozen = switches.Frozen(*frozen)
    on = switches.switches(Layer(), use, None, frozen)
    assert on.use_running_average == (use or frozen.statistics)
    # Frozen statistics may go on to move in training, and do not in evaluation.
    assert on.update_running_average == (not use and not frozen.updates)
    assert on.train_scale == (not frozen.scale)
    assert on.train_bias == (not frozen.bias)
    on = switches.switches(Layer(True), use, True, frozen)
    assert on.update_running_average == (not frozen.updates)


def test_each_must_be_known():
    message = "`update_running_average` must be True or False, got 'x'"
    with pytest.raises(TypeError, match=message):
        switches.switches(Layer(), True, "x", NOT_FROZEN)
    with pytest.raises(TypeError, match="`update_running_average` must be known"):
        jax.jit(lambda on: switches.switches(Layer(), True, on, NOT_FROZEN))(True)
