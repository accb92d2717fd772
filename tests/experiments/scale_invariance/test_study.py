import json

import numpy as np
import pytest

from experiments import __main__ as main

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

TINY = "--quick --steps 10 --records 2 --hidden 10 10 --activations relu --seeds 2"


@pytest.mark.exhaustive  # Compiling takes ten seconds.
def test_a_short_run(tmp_path, capsys):
    folders = ["--out", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    main.main(["scale_invariance", *TINY.split(), *folders])
    result = json.loads((tmp_path / "scale_invariance.json").read_text())
    assert "the identities of one layer | **holds**" in capsys.readouterr().out
    assert result["steps"] == [5, 10]
    run = result["runs"]["with_bn_relu"]
    assert np.shape(run["norm"]) == (2, 2, 3, 2)
    # Larger scales first, where epsilon weighs nothing.
    np.testing.assert_allclose(
        np.array(run["norm"])[..., 1:, :],
        np.array(run["predicted"])[..., 1:, :],
        rtol=1e-3,
    )
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--hidden 10", "`hidden` must have two layers or more"),
        ("--learning-rate -1", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
        main.main(["scale_invariance", *options.split(), "--out", str(tmp_path)])
