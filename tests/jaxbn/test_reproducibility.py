"""Every test that the page names is there, and every test of the topic is named."""

import ast
import pathlib
import re

from jaxbn import reproducibility

ROOT = pathlib.Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", reproducibility.__doc__)


def names_of_tests(path):
    tree = ast.parse((ROOT / path).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if node.name.startswith("test_")}


def test_every_test_that_is_named_exists():
    assert len(NAMED) == reproducibility.__doc__.count("::") > 10
    for path, name in NAMED:
        assert name in names_of_tests(path), f"{path}::{name}"


def test_every_test_of_the_topic_is_named():
    topic = "tests/test_reproducibility.py"
    assert {name for path, name in NAMED if path == topic} == names_of_tests(topic)
