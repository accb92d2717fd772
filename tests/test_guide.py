"""The snippets of the guide run, and the names and the tests on its pages exist."""

import ast
import doctest
import pathlib
import re

import pytest

import jaxbn

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {path.name: path.read_text() for path in (ROOT / "jaxbn/guide").glob("*.md")}
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page):
    """Runs the snippets of a page one after the other; `>>>` marks a doctest."""
    names = {}
    for found in SNIPPET.finditer(PAGES[page]):
        line = PAGES[page].count("\n", 0, found.start(1))
        if not found[1].startswith(">>>"):
            # The empty lines give the error the line number of the page.
            exec(compile("\n" * line + found[1], page, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(found[1], names, page, page, line)
        runner = doctest.DebugRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, clear_globs=False)
        names = test.globs


@pytest.mark.parametrize("page", PAGES)
def test_snippets(page):
    run(page)


def test_a_wrong_snippet_fails(monkeypatch):
    for snippet in ("1 / 0", ">>> 1 + 1\n3"):
        monkeypatch.setitem(PAGES, "wrong", f"```python\n{snippet}\n```\n")
        with pytest.raises((ZeroDivisionError, doctest.DocTestFailure)):
            run("wrong")


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(page):
    for name in re.findall(r"\bjaxbn((?:\.[A-Za-z]\w*)+)", PAGES[page]):
        found = jaxbn
        for part in name[1:].split("."):
            found = getattr(found, part)


def names_of_tests(path):
    tree = ast.parse((ROOT / path).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if node.name.startswith("test_")}


def test_the_tests_of_reproducibility_are_listed():
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", PAGES["reproducibility.md"])
    for path, name in named:
        assert name in names_of_tests(path), f"{path}::{name}"
    topic = "tests/test_reproducibility.py"
    assert {name for path, name in named if path == topic} == names_of_tests(topic)
