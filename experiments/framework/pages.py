"""Writes every results page again from its JSON, and the tables in READMEs."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator

from experiments.framework import discovery, output

# It matches `<!-- table FILE: first words of a paragraph -->`, the table, and
# `<!-- end -->`.
_QUOTED = re.compile(
    r"(?P<start><!-- table (?P<file>\S+): (?P<title>.+?) -->\n)"
    r"(?P<table>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Pages:
    """Writes every results page again, and the tables that READMEs quote."""

    name = "pages"

    root: pathlib.Path = discovery.ROOT
    """The folder of the project."""

    def run(self) -> None:
        """Writes the pages and READMEs, and prints their names."""
        for path in results(self.root):
            write(path)
            print(path.with_suffix(".md").relative_to(self.root))
        for path in readmes(self.root):
            text = path.read_text()
            if (filled := fill(text, path.parent)) != text:
                output.write_text(path, filled)
                print(path.relative_to(self.root))


def write(path: pathlib.Path) -> str:
    """Writes the pages of the JSON at `path` and returns their text."""
    study, _ = discovery.find(json.loads(path.read_text())["study"])
    return study.load().write_pages(path)


def results(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the JSON files of all studies."""
    return sorted(root.glob("experiments/*/*/results/*.json"))


def readmes(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields every README, and every page of the guide, that may quote a table."""
    yield root / "README.md"
    yield from sorted(root.glob("jaxbn/guide/*.md"))
    yield from sorted(root.glob("experiments/**/README.md"))


def fill(text: str, folder: pathlib.Path) -> str:
    """Returns `text` with its quoted tables replaced by those of the results.

    Args:
      text: Markdown; `<!-- table FILE: TITLE -->` and `<!-- end -->` enclose a table.
      folder: the folder that file names are relative to.

    Raises:
      ValueError: if a file has no such table.
    """

    def quoted(match: re.Match[str]) -> str:
        page = (folder / match["file"]).read_text()
        return f"{match['start']}\n{table(page, match['title'])}\n\n{match['end']}"

    return _QUOTED.sub(quoted, text)


def table(page: str, title: str) -> str:
    """Returns the first table after the paragraph that starts with `title`."""
    paragraphs = page.split("\n\n")
    for place, paragraph in enumerate(paragraphs):
        if paragraph.startswith(title):
            for later in paragraphs[place:]:
                if later.startswith("|"):
                    return later.rstrip("\n")
    raise ValueError(f"There is no table after a paragraph that starts with {title!r}.")
