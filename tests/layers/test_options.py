"""No option of the functional form is forgotten in a layer."""

import dataclasses
import inspect
import subprocess
import sys

import flax.linen
import flax.nnx
import pytest

import jaxbn
from jaxbn import linen, nnx
from jaxbn._core import call

# A call of a layer takes these arguments, or the layer makes them.
OF_A_CALL = {"mask", "residual", "factors"}

# These arguments only a layer has.
OF_A_LAYER = {
    "use_running_average",
    "param_dtype",
    "use_bias",
    "use_scale",
    "bias_init",
    "scale_init",
    "update_running_average",
    "use_fast_variance",
    "force_float32_reductions",
    "parent",
    "name",
    "self",
    "num_features",
    "promote_dtype",
    "rngs",
    "bias_metadata",
    "scale_metadata",
}

KEYWORDS = {
    parameter.name: parameter.default
    for parameter in inspect.signature(jaxbn.batch_norm_train).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in OF_A_CALL
}


FIELDS = {field.name: field.default for field in dataclasses.fields(linen.BatchNorm)}
ARGUMENTS = {
    parameter.name: parameter.default
    for parameter in inspect.signature(nnx.BatchNorm.__init__).parameters.values()
}


@pytest.mark.parametrize("fields", [FIELDS, ARGUMENTS], ids=["linen", "nnx"])
def test_fields_are_the_keywords_with_their_defaults(fields):
    shared = {name: value for name, value in fields.items() if name not in OF_A_LAYER}
    assert shared == KEYWORDS


def test_all_are_passed_on():
    """The options of a call in training are the keywords of the function, and two more.

    `momentum`, `unbiased` and `estimator` make the estimator.
    """
    made_of = {"momentum", "unbiased", "estimator"}
    more = {"force_float32_reductions", "initializing"}
    options = set(call.Options._fields)
    assert options - more == set(KEYWORDS) - made_of


def test_inference_has_no_defaults_of_its_own():
    inference = inspect.signature(jaxbn.batch_norm_inference).parameters
    train = inspect.signature(jaxbn.batch_norm_train).parameters
    for name, parameter in inference.items():
        assert parameter.default == train[name].default, name


def test_subclasses_of_flax():
    assert issubclass(linen.BatchNorm, flax.linen.BatchNorm)
    assert issubclass(nnx.BatchNorm, flax.nnx.BatchNorm)
    theirs = [field.name for field in dataclasses.fields(flax.linen.BatchNorm)]
    assert [name for name in FIELDS if name in theirs] == theirs


def test_public_names():
    assert dir(jaxbn) == sorted(jaxbn.__all__)
    for name in jaxbn.__all__:
        value = getattr(jaxbn, name)
        assert value.__doc__, name
        module = getattr(value, "__all__", None)
        for inner in module or ():
            assert getattr(value, inner).__doc__, (name, inner)
    with pytest.raises(AttributeError, match="no attribute 'flax'"):
        _ = jaxbn.flax


def test_import_needs_no_flax():
    program = (
        "import sys, jaxbn; assert not any(n.startswith('flax') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
