"""The page of questions and answers; what it shows runs as a doctest."""

import ast
import pathlib
import re

import pytest

import jaxbn
from jaxbn import guide

ANSWERS = dict(
    re.findall(r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|\Z)", guide.__doc__, re.M | re.S)
)


def test_it_is_a_docstring_and_nothing_else():
    (only,) = ast.parse(pathlib.Path(guide.__file__).read_text()).body
    assert ast.get_docstring(ast.Module([only], [])) is not None


@pytest.mark.parametrize("question", ANSWERS)
def test_answers_are_short(question):
    """Sentences of an answer, without its code and tables."""
    prose = [line for line in ANSWERS[question].splitlines() if line[:2] != "  "]
    assert 0 < sum(map(bool, prose)) <= 9


def test_names_on_the_page_exist():
    names = set(re.findall(r"`?jaxbn\.([\w.]+\w)", guide.__doc__))
    assert {"diagnose", "recalibrate", "training", "reproducibility"} <= names
    for name in names:
        found = jaxbn
        for part in name.split("."):
            found = getattr(found, part)
