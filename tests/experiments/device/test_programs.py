import chex
import jax
import pytest

from experiments.device import programs
from experiments.programs import cases


@pytest.mark.exhaustive
def test_a_program_runs_and_says_what_it_moves(tiny):
    one = programs.make(cases.Case(program="short_resnet", dtype="float32", images=2))
    assert one.traffic_MB is not None
    assert one.traffic_MB > 0
    chex.assert_trees_all_equal(one.run(), one.run())  # It uses up no argument.


def test_arrays_of_one_shape_differ(tiny):
    """With equal arrays the cotangent of the layer would be its input."""
    leaf = jax.ShapeDtypeStruct((4,), "float32")
    assert (programs._random(0, leaf) != programs._random(1, leaf)).any()
