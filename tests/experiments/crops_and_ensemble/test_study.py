import json

import numpy as np
import pytest

from experiments import __main__ as main
from experiments.crops_and_ensemble import network, study

# These are whole programs, which take minutes together.
pytestmark = pytest.mark.exhaustive

SHORT = "--quick --steps 5 --seeds 2 --width 2 --test-images 40 --batch-size 8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--steps 0", "`steps` must be at least 1, got 0"),
        ("--seeds 0", "`seeds` must be at least 1, got 0"),
        ("--test-images 0", "`test_images` must be at least 1, got 0"),
        ("--learning-rate nan", "`learning_rate` must be positive"),
    ],
)
def test_bad_options(options, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
        main.main(["crops_and_ensemble", "--out", str(tmp_path), *options.split()])


@pytest.mark.parametrize(("side", "size"), [(256, 224), (32, 28), (16, 14)])
def test_input_in_the_proportion_of_the_paper(side, size):
    assert study.size_of(side) == size


@pytest.fixture
def two(monkeypatch):
    """Two networks only: the others differ in what test_network checks."""
    members = {"dropout 5 %": network.Member(dropout=0.05)}
    unchanged = {network.UNCHANGED: network.Member()}
    monkeypatch.setattr(network, "MEMBERS", members)
    monkeypatch.setattr(network, "NETWORKS", {**members, **unchanged})


def command(tmp_path):
    folders = ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    return ["crops_and_ensemble", *SHORT.split(), *folders]


@pytest.mark.exhaustive
def test_a_run_that_was_stopped_trains_nothing_again(two, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(study.evaluation, "predict", stop)
        with pytest.raises(SystemExit, match="Run the same command again to resume"):
            main.main(command(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(study.augmentation, "augment", stop)
        main.main(command(tmp_path))
    check_result(tmp_path / "out")


def check_result(out):
    (path,) = out.glob("*.json")
    result = json.loads(path.read_text())
    json.dumps(result, allow_nan=False)
    assert path.stem == "crops_and_ensemble_digits"
    assert result["test_images"] == 40
    assert result["distinct_crops"] == 48
    for by_size in result["errors"].values():
        assert np.shape(by_size["1"]) == (1, 2)
    assert np.shape(result["single"]["144"]) == (2,)
    assert path.with_suffix(".md").exists()
    assert path.with_suffix(".png").exists()
    assert not list((out / "checkpoints").glob("*"))
