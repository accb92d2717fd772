import json
import pathlib
import shutil

import pytest

from experiments import __main__ as main
from experiments.policy_cost import network, study

FOLDER = pathlib.Path(study.__file__).parent
COMMITTED = FOLDER / "results" / "policy_cost.json"


def test_the_network_has_the_layers_it_says():
    assert len(network.layers(network.Setting())) == 12


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--policies", "none", "Exact"], "with 'none' and 'Local'"),
        (["--policies", "none", "Local", "Sometimes"], "must be of"),
        (["--rounds", "1"], "`rounds` must be at least 2"),
        (["--widths"], "`widths` must hold"),
    ],
)
def test_options_are_checked_before_any_work(option, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main.main(["policy_cost", "--out", str(tmp_path), *option])


def test_parts_that_are_not_done_again_are_kept(monkeypatch):
    monkeypatch.setattr(study.modelled, "predictions", lambda: "modelled anew")
    monkeypatch.setattr(study.mlperf, "compare", lambda: "compared anew")
    known = {"measured": 1, "modelled": 2, "mlperf": 3, "compiled": [4]}
    made = study.measure(study.PolicyCost(part="modelled"), known)
    assert made == {
        "measured": 1, "modelled": "modelled anew", "mlperf": "compared anew",
        "compiled": [4],
    }  # fmt: skip


@pytest.mark.exhaustive
def test_study(tmp_path):
    # The model, which compiles large networks, is that of the committed results. Exact
    # synchronisation is counted in tests/test_sync_policies.py.
    shutil.copy(COMMITTED, tmp_path)
    options = "--part measured --quick --rounds 2 --policies none Local Stale"
    main.main(["policy_cost", *options.split(), "--out", str(tmp_path)])
    assert (tmp_path / "policy_cost.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "policy_cost.json").read_text())["measured"]
    assert found["layers"] == 3
    for part in ("eight devices", "two processes"):
        rows = {name: row["collectives"] for name, row in found[part].items()}
        # As many as without synchronisation.
        for key in ("collectives", "waited_for"):
            assert rows["Stale"][key] == rows["Local"][key] == rows["none"][key]
