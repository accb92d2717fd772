import dataclasses
import pathlib

import pytest

from experiments import __main__ as main

ROOT = pathlib.Path(__file__).parents[2]


def test_lists_every_study_with_one_line(capsys):
    main.main([])
    shown = capsys.readouterr().out
    for name, command in main.COMMANDS.items():
        assert f"  {name:20} {command.__doc__.splitlines()[0]}" in shown


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_options_come_from_the_dataclass(name, capsys):
    with pytest.raises(SystemExit) as error:
        main.main([name, "--help"])
    assert error.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(main.COMMANDS[name]):
        positional = (name, field.name) == ("prepare", "dataset")
        if field.name != "hp" and not positional:  # Of hp the fields are options.
            assert f"--{field.name.replace('_', '-')}" in shown


def test_user_errors_are_one_message(tmp_path):
    with pytest.raises(SystemExit, match=r"^FileNotFoundError: The data set"):
        main.main(["figure1", "--dataset", "mnist", "--data-dir", str(tmp_path)])
