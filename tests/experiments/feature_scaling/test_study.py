"""The study as it is, and its scalings against scikit-learn's."""

import json

import numpy as np
import pytest
import sklearn.datasets
import sklearn.preprocessing

from experiments import __main__ as main
from experiments.feature_scaling import study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive


def test_from_the_command_line(tmp_path, capsys):
    options = ["--quick", "--tables", "iris", "--out", str(tmp_path)]
    main.main(["feature_scaling", *options])
    result = json.loads((tmp_path / "feature_scaling.json").read_text())
    steps = {row["scaling"]: row["steps"] for row in result["rows"]}
    assert steps["none"] > steps["min-max"] > steps["z-score"]
    assert steps["BN first"] == steps["z-score"]
    assert "Verdict: " in capsys.readouterr().out
    assert (tmp_path / "feature_scaling.png").exists()


def test_scalings():
    x = sklearn.datasets.load_wine().data
    minmax = sklearn.preprocessing.MinMaxScaler().fit_transform(x)
    standard = sklearn.preprocessing.StandardScaler().fit_transform(x)
    np.testing.assert_allclose(study.min_max(x), minmax)
    np.testing.assert_allclose(study.z_score(x), standard)
    # Float32, and an epsilon of 1e-5 beside the smallest variance, .015.
    np.testing.assert_allclose(study.batch_norm(x), standard, rtol=1e-3, atol=1e-4)


def test_targets():
    iris, diabetes = (study.targets(study.TABLES[n]()) for n in ("iris", "diabetes"))
    assert iris.shape == (150, 3)
    assert diabetes.shape == (442, 1)
    for y in (iris, diabetes):
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(y.std(0), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": ("titanic",)}, "`tables` must be among"),
        ({"tables": ()}, "`tables` must be among"),
        ({"tolerance": 1.0}, r"`tolerance` must lie in \(0, 1\), got 1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.FeatureScaling(**options))
