import json

import numpy as np
import pytest

from experiments import __main__ as main

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

TINY = (
    "--quick --steps 4 --records 2 --hidden 3 --seeds 2 --units 4 --examples 8 40 "
    "--batch-sizes 20"
)


@pytest.mark.exhaustive  # Compiling takes ten seconds.
def test_a_short_run(tmp_path, capsys):
    folders = ["--out", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    main.main(["whitening", *TINY.split(), *folders])
    result = json.loads((tmp_path / "whitening.json").read_text())
    assert "the covariance is singular | **holds**" in capsys.readouterr().out
    assert np.shape(result["trained"]["whitening, 20"]["accuracy"]) == (2, 2)
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-sizes 1", "`batch_sizes` must be at least 2"),
        ("--learning-rate -1", "`learning_rate` must be positive"),
        ("--steps 10 --records 3", "`steps` must be a multiple"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
        main.main(["whitening", *options.split(), "--out", str(tmp_path)])
