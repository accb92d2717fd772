import json

from experiments.accelerators import (
    process,
    results,
)
from tests.experiments.accelerators.rows import CASE, fake_worker


def test_a_known_program_is_not_compiled_again(tmp_path, monkeypatch):
    seen = []
    program = {"fingerprint": "abc"}
    first = fake_worker(seen, program, {"cycles": 7})
    monkeypatch.setattr(process.subprocess, "run", first)
    path = tmp_path / "accelerators.json"
    assert results.Results(path).compile(CASE)["cycles"] == 7
    assert "--known" not in seen[-1]

    unchanged = fake_worker(seen, program, {"unchanged": True})
    monkeypatch.setattr(process.subprocess, "run", unchanged)
    assert results.Results(path).compile(CASE)["cycles"] == 7
    assert seen[-1][-2:] == ["--known", "abc"]

    other = fake_worker(seen, {"fingerprint": "def"}, {"cycles": 9})
    monkeypatch.setattr(process.subprocess, "run", other)
    known = results.Results(path)
    assert known.compile(CASE)["cycles"] == 9
    assert len(known.content["rows"]) == 1
    assert json.loads(path.read_text()) == known.content
