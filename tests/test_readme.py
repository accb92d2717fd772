"""Every Python snippet of the README runs, in order, as one program."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_python_snippets():
    snippets = blocks("python")
    assert len(snippets) == 4
    namespace = {}
    for snippet in snippets:
        exec(snippet, namespace)
    assert int(namespace["state"].step) == 1
    assert 0 < namespace["metrics"]["loss"].mean < 3  # About log(10).


def test_commands_are_complete():
    main_job, tests = blocks("bash")
    for command in (main_job, tests):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert command.count("\n") == 1
    assert "-m experiments figure1" in main_job
    assert "-m pytest" in tests


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target
