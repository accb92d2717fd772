"""Every file that the project's text names exists.

Outputs, as `runs/...` or a name in a temporary folder, do not follow these patterns.
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("experiments", "jaxbn", "tests")
FILES = [
    path.relative_to(ROOT)
    for pattern in ("*.md", "*.toml", *(f"{folder}/**/*.*" for folder in FOLDERS))
    for path in sorted(ROOT.glob(pattern))
    if path.suffix in (".py", ".md", ".toml")
]
NAMES = {path.name for path in FILES}

# A path from the top of the project, in code too; `*` may stand for many.
FROM_TOP = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\.(?:py|md)\b")
# A module without its folder; a Markdown file so named may be an output.
QUOTED = re.compile(r"`([\w-]+\.py)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")  # In Markdown, from its folder.


def missing(text, folder=None):
    """Returns what `text` names and the project lacks.

    Args:
      text: the content of a file.
      folder: the folder that its links start from; None if it is not Markdown.
    """
    found = [path for path in FROM_TOP.findall(text) if not any(ROOT.glob(path))]
    found += [name for name in QUOTED.findall(text) if name not in NAMES]
    if folder is not None:
        links = LINK.findall(text)
        found += [link for link in links if not (ROOT / folder / link).exists()]
    return found


def test_named_files_exist():
    found = {}
    for path in FILES:
        folder = path.parent if path.suffix == ".md" else None
        if gone := missing((ROOT / path).read_text(), folder):
            found[str(path)] = gone
    assert found == {}


def test_a_file_that_is_not_there_is_found():
    gone = "gone" + ".py"  # In one piece, this file itself would name it.
    for text in (f"See tests/{gone}.", f"`{gone}`", f'"jaxbn/*/{gone}"'):
        assert len(missing(text)) == 1, text
    for link in (f"[guide]({gone})", f"![figure](../{gone}#part)"):
        assert len(missing(link, pathlib.Path("jaxbn"))) == 1, link


def test_what_is_there_or_is_an_output_is_not_reported():
    text = "`reference.py`, tests/reference.py::moments, runs/figure1_digits.md, a.py"
    assert missing(text) == []
    links = "[a](../README.md#run) [b](guide/models.md) [c](https://x.org/a) [d](#run)"
    assert missing(links, pathlib.Path("jaxbn")) == []
