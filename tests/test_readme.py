"""Every Python snippet of the README runs alone, and its commands are whole."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


POLICIES = (ROOT / "experiments/library/sync_policies/README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_policy_of_ones_own_runs():
    (snippet,) = blocks("python", POLICIES)
    namespace = {}
    exec(snippet, namespace)
    assert namespace["y"].shape == (8, 3)


@pytest.mark.parametrize("snippet", blocks("python"))
def test_every_snippet_runs_alone(snippet):
    namespace = {}
    exec(snippet, namespace)
    if "make_train_step" in snippet:
        assert int(namespace["state"].step) == 1
        assert 0 < namespace["metrics"]["loss"].mean < 3  # About log(10).


def test_commands_are_complete():
    library, main_job, tests = blocks("bash")
    assert library == "pip install .\n"
    for command in (main_job, tests):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert command.count("\n") == 1
    assert "-m experiments figure1" in main_job
    assert "-m pytest" in tests
