import json

import numpy as np
import pytest

from experiments import __main__ as main

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

TINY = "--quick --steps 4 --records 2 --hidden 6 6 --activations relu --seeds 2"


@pytest.mark.exhaustive  # Compiling takes ten seconds.
def test_a_short_run(tmp_path, capsys):
    folders = ["--out", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    main.main(["saturation", *TINY.split(), *folders])
    result = json.loads((tmp_path / "saturation.json").read_text())
    assert "about half of the ReLUs" in capsys.readouterr().out
    for run in result["runs"].values():
        assert np.shape(run["gradient"]) == (2, 2, 2, 2)
        np.testing.assert_allclose(np.array(run["gradient"])[..., -1], 1)
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--activations tanh", "`activations` must be among"),
        ("--learning-rate nan", "`learning_rate` must be positive"),
        ("--hidden 5 0", "`hidden` must be at least 1"),
        ("--records 7", "`steps` must be a multiple"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
        main.main(["saturation", *options.split(), "--out", str(tmp_path)])
