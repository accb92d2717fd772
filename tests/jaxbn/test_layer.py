"""No option of the functional form is forgotten in a layer."""

import dataclasses
import inspect

import pytest

import jaxbn
from jaxbn import layer, linen, nnx

# A call of a layer takes these arguments, or the layer makes them.
OF_A_CALL = {"mask", "residual", "name", "estimator"}

# These arguments only a layer has.
OF_A_LAYER = {
    "use_running_average",
    "param_dtype",
    "use_bias",
    "use_scale",
    "bias_init",
    "scale_init",
    "update_running_average",
    "estimator",
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
    assert {*layer._OPTIONS, *layer._GROUPS, "dtype"} == set(KEYWORDS)


def test_inference_has_no_defaults_of_its_own():
    inference = inspect.signature(jaxbn.batch_norm_inference).parameters
    train = inspect.signature(jaxbn.batch_norm_train).parameters
    for name, parameter in inference.items():
        assert parameter.default == train[name].default, name


def test_import_is_lazy_and_complete():
    for name in ("linen", "nnx", "parallel", "testing", "training"):
        assert getattr(jaxbn, name).__name__ == f"jaxbn.{name}"
        assert name in dir(jaxbn)
    assert jaxbn.estimators.__name__ == "jaxbn.core.estimators"
    with pytest.raises(AttributeError, match="no attribute 'flax'"):
        _ = jaxbn.flax
