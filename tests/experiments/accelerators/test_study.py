import dataclasses
import json

import pytest

from experiments.accelerators import (
    lists,
    process,
    results,
    study,
)
from experiments.programs import targets
from tests.experiments.accelerators.rows import CASE, made


def test_missing_compilers_are_one_line_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(targets, "compiler_version", lambda platform: None)
    study.Accelerators(out=tmp_path).run()
    lines = capsys.readouterr().out.splitlines()
    version = targets.jax_version()
    assert f"pip install 'jax[tpu]=={version}'" in lines[0]
    assert f"pip install 'jax[cuda12]=={version}'" in lines[1]


def test_study_runs_with_what_is_there(tmp_path, monkeypatch, capsys):
    compiled = []

    def compile_case(case, old):
        compiled.append(case)
        return made(case)

    monkeypatch.setattr(process, "compile_case", compile_case)
    only_tpu = {"tpu": "libtpu 1", "gpu": None}
    monkeypatch.setattr(targets, "compiler_version", only_tpu.get)
    study.Accelerators(quick=True, out=tmp_path).run()
    assert "No GPU compiler is installed" in capsys.readouterr().out
    tpu = [case for case in lists.quick_cases() if case.platform == "tpu"]
    assert set(compiled) == set(tpu)
    for name in ("json", "md", "png"):
        assert (tmp_path / f"accelerators.{name}").exists()
    rows = json.loads((tmp_path / "accelerators.json").read_text())["rows"]
    assert rows == sorted(rows, key=results.key)
    assert len(rows) == len(tpu)

    compiled.clear()
    study.Accelerators(network="inference", out=tmp_path).run()
    assert {case.program for case in compiled} == {"inference"}
    rows = json.loads((tmp_path / "accelerators.json").read_text())["rows"]
    assert {row["program"] for row in rows} == {"layer", "small_network", "inference"}


def test_unknown_networks_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of \['bn_inception', .* resnet"):
        study.Accelerators(network="resnet", out=tmp_path).run()


def test_stopping_is_one_line(tmp_path, monkeypatch):
    def compile_case(case, old):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "compile_case", compile_case)
    monkeypatch.setattr(targets, "compiler_version", lambda platform: "libtpu 1")
    with pytest.raises(SystemExit, match=r"^Stopped"):
        study.Accelerators(quick=True, out=tmp_path).run()


def test_rows_that_no_list_names_are_left_out(tmp_path, monkeypatch):
    gone = made(dataclasses.replace(CASE, program="layer", norm="gone"))
    path = tmp_path / "accelerators.json"
    path.write_text(json.dumps({"rows": [gone, made(CASE)]}))
    monkeypatch.setattr(targets, "compiler_version", lambda platform: None)
    study.Accelerators(out=tmp_path).run()
    rows = json.loads(path.read_text())["rows"]
    assert [row["norm"] for row in rows] == ["jaxbn"]
