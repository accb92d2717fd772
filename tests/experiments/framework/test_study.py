"""Tests what happens when a study is run, with one that only counts."""

import dataclasses
import json
import pathlib
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.framework import checkpoints, study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(study.Study):
    """Counts."""

    name = "counting"
    small: ClassVar = {"steps": 5, "sizes": (2,)}
    not_in_training = ("sizes",)
    report = staticmethod(lambda result: f"Counted to {result['count']}.")
    draw = staticmethod(lambda result: plt.figure())

    steps: int = 100
    """The number of steps."""
    sizes: tuple[int, ...] = (2, 3)
    """The sizes."""

    def check(self):
        if self.steps < 1:
            raise ValueError("`steps` must be at least 1.")

    def results(self, known):
        for count in (1, self.steps):
            self.checkpoints().of("run").save(count, {"x": np.zeros(1)})
            yield {"count": count, "before": known.get("count")}


def test_a_run_writes_json_and_pages_and_removes_checkpoints(tmp_path, capsys):
    for before in (None, 5):
        Counting(quick=True, out=tmp_path).run()
        result = json.loads((tmp_path / "counting.json").read_text())
        assert (result["count"], result["before"]) == (5, before)
        assert result["study"] == "counting"
        assert result["command"] == "python -m experiments counting --quick"
        page = (tmp_path / "counting.md").read_text()
        assert page.endswith(".\n\nCounted to 5.\n")
        assert page in capsys.readouterr().out
        assert (tmp_path / "counting.png").exists()
        assert not list(tmp_path.glob("checkpoints/*"))


def test_wrong_options_leave_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="`steps` must be at least 1"):
        Counting(steps=0, out=tmp_path / "out").run()
    assert not list(tmp_path.iterdir())


def test_the_small_setting_changes_defaults_only():
    assert Counting().settled() == Counting()
    assert Counting(quick=True).settled() == Counting(steps=5, sizes=(2,), quick=True)
    found = Counting(steps=7, quick=True).settled()
    assert (found.steps, found.sizes) == (7, (2,))


def test_folders_do_not_change_the_identity():
    here = Counting(out=pathlib.Path("here")).identity()
    assert here == Counting(data_dir=pathlib.Path("there")).identity()
    assert here == {"steps": 100, "sizes": [2, 3], "quick": False}


def test_checkpoints_are_those_of_the_options_that_train():
    places = [
        Counting(**options).checkpoints()
        for options in ({}, {"sizes": ()}, {"steps": 3})
    ]
    assert places[0] == places[1] != places[2]
    assert isinstance(places[0], checkpoints.Folder)


def test_interrupted(tmp_path, monkeypatch):
    def stop(self, known):
        yield {"count": 3}
        raise KeyboardInterrupt

    monkeypatch.setattr(Counting, "results", stop)
    with pytest.raises(SystemExit, match="Run the same command again to resume"):
        Counting(out=tmp_path).run()
    # The result up to the interruption is written.
    assert json.loads((tmp_path / "counting.json").read_text())["count"] == 3
