"""The study at a few steps, and what is made of the percentiles."""

import json

import numpy as np
import pytest

from experiments import __main__ as main
from experiments.covariate_shift import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

OPTIONS = (
    "--quick --steps 2 --record-every 1 --hidden 6 6 --seeds 1 --observed 20 "
    "--batch-size 10 --lengths 1"
)


@pytest.mark.exhaustive
def test_from_the_command_line(tmp_path, capsys):
    options = OPTIONS.split()
    main.main(["covariate_shift", *options, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "covariate_shift.json").read_text())
    assert result["step"] == [1, 2]
    for found in result["networks"].values():
        assert np.shape(found["shift_cosine"]) == (2, 1, 3)
        assert np.shape(found["movement"]) == (1, 2)
        assert np.shape(found["traces"]) == (2, 2, 3)
        first = np.array(found["shift_distance"])[..., 0]
        np.testing.assert_array_equal(first, 0)  # No layer before it.
    assert "Verdict on the paper's reason" in capsys.readouterr().out
    assert (tmp_path / "covariate_shift.png").exists()
    assert not list(tmp_path.glob("checkpoints/*"))


def test_movement_in_widths_per_record():
    still = np.array([-1.0, 0.0, 1.0])
    # Two units: one still, one whose three percentiles move by .5 each record.
    units = np.stack(
        [np.stack([still, still + 0.5 * record], -1) for record in range(4)]
    )
    traces = units[:, None, None]
    np.testing.assert_allclose(study.movement(traces), [[np.median([0, 0.25])]])


def test_a_unit_without_width_is_no_error():
    assert np.isnan(study.movement(np.zeros((3, 1, 1, 3, 2)))).all()


def test_typical_unit():
    traces = np.random.default_rng(0).standard_normal((9, 3, 5))
    traces[:, :, 2] = np.median(traces, -1)
    np.testing.assert_array_equal(study.typical_unit(traces), traces[:, :, 2])


def test_parts_of_layers():
    params = ["Dense_0", "Dense_1", "Dense_10", "BatchNorm_0", "Noisy_1", "Dense_2"]
    assert study.layers_of(dict.fromkeys(params)) == [
        ["BatchNorm_0", "Dense_0"],
        ["Dense_1", "Noisy_1"],
        ["Dense_2"],
        ["Dense_10"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "softsign"}, "`activation` must be among"),
        ({"lengths": (0.0, 1.0)}, "`lengths` must be positive, got"),
        ({"hidden": (100, 50)}, "`hidden` must be layers of one width, got"),
        ({"observed": 1}, "`observed` must be at least 2, got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.CovariateShift(**options))
