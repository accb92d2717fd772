import json
import pathlib
import subprocess
import sys

import pytest

from experiments import __main__ as main
from experiments.framework import discovery, everything

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


@pytest.mark.first_case
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
    assert set(made) == set(discovery.studies())
    assert made["identity"][1:] == [
        "-m", "experiments", "identity", "--out", "somewhere/identity", "--quick"
    ]  # fmt: skip


LIST = """
import sys
from experiments import __main__ as main
main.main({arguments})
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"jax", "numpy", "tyro"}}
assert not [name for name in sys.modules if name.endswith(".study")]
"""


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_list_of_studies_imports_none(arguments):
    code = LIST.format(arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=discovery.ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name, command in discovery.commands().items():
        assert f"  {name:20} {command.load().__doc__.splitlines()[0]}" in done.stdout


def test_user_errors_are_one_message(tmp_path):
    with pytest.raises(SystemExit, match=r"^FileNotFoundError: The data set"):
        main.main(["figure1", "--dataset", "mnist", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="There is no study 'figure2'"):
        main.main(["figure2"])


def test_former_names_stand_for_options():
    command, options = discovery.find("figure1_sweep")
    assert (command.name, options) == ("figure1", ["--sweep"])
    assert discovery.find("figure1") == (command, [])
    assert discovery.find("figure2") is None
