import json

import numpy as np
import pytest

from experiments import __main__ as main

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

TINY = "--quick --steps 20 --records 2 --hidden 8 --seeds 2"


@pytest.mark.exhaustive  # Compiling takes ten seconds.
def test_a_short_run(tmp_path, capsys):
    folders = ["--out", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    main.main(["outside_gradient", *TINY.split(), *folders])
    result = json.loads((tmp_path / "outside_gradient.json").read_text())
    shown = capsys.readouterr().out
    assert "the bias of one unit grows at every step | **holds**" in shown
    networks = result["networks"]
    assert np.shape(networks["BN"]["bias"]) == (2, 2)
    assert np.max(networks["BN"]["bias"]) < 1e-4
    assert np.min(networks["centred outside"]["bias"]) > 1e-3
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-size 1", "`batch_size` must be at least 2, got 1"),
        ("--learning-rate 0", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
        main.main(["outside_gradient", *options.split(), "--out", str(tmp_path)])
