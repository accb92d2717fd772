import json
import shutil

import jax
import numpy as np
import pytest

from experiments.framework import discovery, output, pages, provenance, verdicts
from experiments.paper.figure1 import study as figure1


def test_plain_numbers():
    values = np.array([[1.23456, np.nan], [np.inf, 0.00098764]], np.float32)
    assert output.plain(values) == [[1.235, None], [None, 0.0009876]]
    assert output.plain(values, digits=2)[0] == [1.2, None]
    assert output.plain(np.array([True, False])) == [True, False]
    assert output.plain(np.arange(2)) == [0, 1]
    assert output.plain(np.float64("-inf")) is None
    json.dumps(output.plain(values), allow_nan=False)


def test_spread_is_the_mean_and_half_the_range():
    assert output.spread(np.array([0.1, 0.4, 0.7])) == "0.4000 ± 0.3000"


PAGE = "Intro.\n\nFirst: a\n\n| a |\n| --- |\n\nSecond one:\n\n| b |\n| --- |\n| 1 |\n"


def test_tables_are_filled_in(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    text = "Before\n\n<!-- table page.md: Second -->\nold\n<!-- end -->\n\nafter"
    filled = pages.fill(text, tmp_path)
    assert filled == text.replace("old", "\n| b |\n| --- |\n| 1 |\n")
    assert pages.fill(filled, tmp_path) == filled
    with pytest.raises(ValueError, match="no table after a paragraph"):
        pages.fill(text.replace("Second", "Third"), tmp_path)


def test_pages_are_written_beside_every_json(tmp_path, capsys):
    results = tmp_path / "experiments" / "library" / "sync_cost" / "results"
    results.mkdir(parents=True)
    shutil.copy(
        discovery.ROOT / results.relative_to(tmp_path) / "sync_cost.json", results
    )
    readme = tmp_path / "README.md"
    source = f"{results.relative_to(tmp_path)}/sync_cost.md: MLPerf"
    readme.write_text(f"<!-- table {source} -->\n<!-- end -->\n")
    pages.Pages(root=tmp_path).run()
    assert {each.suffix for each in results.iterdir()} == {".json", ".md", ".png"}
    assert "| run | cores |" in readme.read_text()
    assert "sync_cost.md\nREADME.md\n" in capsys.readouterr().out


def test_folders_are_not_in_the_command(tmp_path):
    config = figure1.Figure1(out=tmp_path, data_dir=tmp_path)
    assert provenance.command(config) == "python -m experiments figure1"


def test_device_and_versions():
    made = provenance.of(figure1.Figure1())
    assert "cores" in made["device"] or "CPU" in made["device"]
    assert made["versions"]["jax"] == jax.__version__
    given = provenance.of(figure1.Figure1(), "a GPU")
    assert given["device"] == "a GPU"
    line = provenance.line(given)
    assert line.startswith("Made by `python -m experiments figure1`, a GPU, flax ")
    assert f", jax {jax.__version__}, " in line


def test_all_some_or_none():
    assert verdicts.of(True, True) == "holds"
    assert verdicts.of(True, False) == "holds partly"
    assert verdicts.of(False, False) == "does not hold here"


def test_expected():
    page = verdicts.expected({"A": True, "B": False}, "Remark.")
    assert page.startswith("Verdict: holds partly. Remark.\n\n| expected | found |")
    assert page.endswith("| A | yes |\n| B | no |")
    assert verdicts.expected({"A": True}).startswith("Verdict: holds.\n\n")


def test_table():
    page = verdicts.table({"A": [True, False], "B": [True]})
    assert page.endswith("| A | **holds partly** |\n| B | **holds** |")
