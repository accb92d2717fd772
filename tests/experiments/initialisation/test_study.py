import json

import numpy as np
import pytest

from experiments import __main__ as main

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

TINY = "--quick --steps 4 --hidden 5 --activations relu --seeds 2 --scales 2"


@pytest.mark.exhaustive  # Compiling takes ten seconds.
def test_a_short_run(tmp_path, capsys):
    folders = ["--out", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    options = [*TINY.split(), "--lowest", "1e-2", "--highest", "1e30"]
    main.main(["initialisation", *options, *folders])
    result = json.loads((tmp_path / "initialisation.json").read_text())
    assert "one may be less careful" in capsys.readouterr().out
    accuracy = result["accuracy"]["relu"]
    assert set(accuracy) == {"with_bn", "hidden_only", "without_bn"}
    assert np.shape(accuracy["with_bn"]) == (2, 2)
    assert [row[1] for row in accuracy["without_bn"]] == [None, None]  # Diverged.
    assert None not in [row[0] for row in accuracy["without_bn"]]
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lowest 2 --highest 1", "`lowest` must be below `highest`"),
        ("--scales 1", "`scales` must be at least 2"),
        ("--activations gelu", "`activations` must be among"),
        ("--steps 9", "`steps` must be a multiple"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
        main.main(["initialisation", *options.split(), "--out", str(tmp_path)])
