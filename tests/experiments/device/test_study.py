import json

import pytest

from experiments.device import study
from tests.experiments.device.rows import row


@pytest.mark.parametrize("before", [[], [{"device": "GPU"}, row("flax", 4.0)]])
def test_the_study_keeps_what_a_worker_said_before_it_ended(
    before, tmp_path, monkeypatch
):
    class Done:
        returncode = 1
        stdout = "".join(json.dumps(said) + "\n" for said in before) + "noise\n"

    flags = []

    def end(command, env, **_):
        flags.append(env["XLA_FLAGS"])
        return Done

    monkeypatch.setattr(study.subprocess, "run", end)
    study.Device(quick=True, out=tmp_path).run()
    assert "command_buffer" not in flags[0]
    assert flags[1].endswith("--xla_gpu_enable_command_buffer=")
    rows = json.loads((tmp_path / "device.json").read_text())["rows"]
    names = ["flax", ""] if before else [""]
    assert [each["norm"] for each in rows] == 2 * names
    assert "status 1" in rows[-1]["error"]
    said = json.loads((tmp_path / "device.json").read_text())["device"]
    assert said == ("GPU" if before else "no device")
    assert f"`, {said}, flax" in (tmp_path / "device.md").read_text()


def test_too_few_rounds(tmp_path):
    with pytest.raises(ValueError, match="`rounds` must be at least 2, got 1"):
        study.Device(rounds=1, out=tmp_path).run()
