import json
import shutil

import PIL.Image
import pytest

from experiments import __main__ as main
from experiments import output, pages

RESULTS = pages.results(pages.ROOT)
NAMES = [path.name for path in RESULTS]

PAGE = "Intro.\n\nFirst: a\n\n| a |\n| --- |\n\nSecond one:\n\n| b |\n| --- |\n| 1 |\n"


def test_every_committed_json_is_found():
    assert {"accelerators.json", "benchmark.json", "figure1_mnist.json"} <= set(NAMES)


@pytest.mark.parametrize("path", RESULTS, ids=NAMES)
def test_committed_results_make_the_committed_pages(path, tmp_path):
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    pages.WRITERS[json.loads(path.read_text())["study"]](copy)
    made = {each.name for each in tmp_path.iterdir()}
    committed = {each.name for each in path.parent.glob(f"{path.stem}[._]*")}
    others = {name for other in NAMES if len(other) > len(path.name)
              for name in committed if name.startswith(other[:-5])}  # fmt: skip
    assert made == committed - others
    page = path.with_suffix(".md")
    assert copy.with_suffix(".md").read_text() == page.read_text()
    for figure in (name for name in made if name.endswith(".png")):
        # Drawn from this JSON, by whatever version of matplotlib.
        source = PIL.Image.open(path.parent / figure).text["Source"]
        assert source == output.digest(path.read_bytes()), figure


@pytest.mark.parametrize("path", RESULTS, ids=NAMES)
def test_every_json_names_what_made_it(path):
    result = json.loads(path.read_text())
    assert result["study"] in main.COMMANDS
    assert result["command"].startswith("python -m experiments")
    assert result["device"]
    versions = result.get("versions") or result["rows"][0]
    assert versions["jax"]


@pytest.mark.parametrize("path", list(pages.readmes(pages.ROOT)), ids=str)
def test_readmes_quote_the_committed_results(path):
    text = path.read_text()
    assert pages.fill(text, path.parent) == text
    assert text.count("<!-- table ") == text.count("<!-- end -->")


def test_tables_are_filled_in(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    text = "Before\n\n<!-- table page.md: Second -->\nold\n<!-- end -->\n\nafter"
    filled = pages.fill(text, tmp_path)
    assert filled == text.replace("old", "\n| b |\n| --- |\n| 1 |\n")
    assert pages.fill(filled, tmp_path) == filled
    with pytest.raises(ValueError, match="no table after a paragraph"):
        pages.fill(text.replace("Second", "Third"), tmp_path)


def test_pages_are_written_beside_every_json(tmp_path, capsys):
    results = tmp_path / "experiments" / "sync_cost" / "results"
    results.mkdir(parents=True)
    (path,) = (each for each in RESULTS if each.name == "sync_cost.json")
    shutil.copy(path, results)
    readme = tmp_path / "README.md"
    source = "experiments/sync_cost/results/sync_cost.md: MLPerf"
    readme.write_text(f"<!-- table {source} -->\n<!-- end -->\n")
    pages.Pages(root=tmp_path).run()
    assert {each.suffix for each in results.iterdir()} == {".json", ".md", ".png"}
    assert "| run | cores |" in readme.read_text()
    assert "sync_cost.md\nREADME.md\n" in capsys.readouterr().out
