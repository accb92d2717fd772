import json
import pathlib
import sys

import pytest

from experiments import __main__ as main
from experiments import everything, studies

# Each adds a line to the file that is its last argument.
WORKS = "import sys, pathlib; pathlib.Path(sys.argv[1]).open('a').write('run\\n')"
FAILS = "print('a'); import sys; print('why\\n'); sys.exit(3)"
SILENT = "import sys; sys.exit(3)"


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Returns a function that makes `python -m experiments all` run two fakes."""

    def replace(second):
        made = {
            name: [sys.executable, "-c", code, str(tmp_path / f"{name}.txt")]
            for name, code in (("first", WORKS), ("second", second))
        }
        monkeypatch.setattr(everything, "commands", lambda out: made)
        return ["all", "--out", str(tmp_path)]

    return replace


def test_what_ended_well_is_not_run_again(fake, tmp_path, capsys):
    main.main(fake(WORKS))
    shown = capsys.readouterr().out
    assert " 1 of 2  first " in shown
    assert shown.count("minutes  ok") == 2
    assert set(json.loads((tmp_path / "all.json").read_text())) == {"first", "second"}
    main.main(fake(WORKS))
    assert capsys.readouterr().out.count("done before") == 2
    assert (tmp_path / "first.txt").read_text() == "run\n"


@pytest.mark.parametrize(("code", "why"), [(FAILS, "why"), (SILENT, "status 3")])
def test_the_others_run_where_one_fails(code, why, fake, tmp_path, capsys):
    arguments = fake(WORKS)
    everything.commands(tmp_path)["first"][2] = code
    with pytest.raises(SystemExit, match="Failed: first"):
        main.main(arguments)
    assert f"failed: {why} (see " in capsys.readouterr().out
    assert set(json.loads((tmp_path / "all.json").read_text())) == {"second"}
    main.main(fake(WORKS))  # The first goes well now, the second is not run again.
    assert set(json.loads((tmp_path / "all.json").read_text())) == {"first", "second"}
    assert (tmp_path / "second.txt").read_text() == "run\n"


def test_every_study_is_run_at_its_small_setting():
    made = everything.commands(pathlib.Path("somewhere"))
    assert set(studies.STUDIES) - set(made) == {"device", "figure1_sweep"}
    assert made["identity"][1:] == [
        "-m", "experiments", "identity", "--out", "somewhere/identity", "--quick"
    ]  # fmt: skip
    assert "--quick" not in made["accuracy"]
