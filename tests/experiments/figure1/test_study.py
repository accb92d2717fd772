import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import __main__ as main
from experiments import datasets
from experiments.figure1 import study as figure1

ROOT = pathlib.Path(__file__).parents[3]

SHORT = "--seeds 2 --steps 2000 --record-every 50 --checkpoint-every 100"


class TestOptions:
    @pytest.mark.parametrize("field", ["steps", "checkpoint_every"])
    def test_bad_intervals(self, field):
        with pytest.raises(ValueError, match=f"`{field}` must be a multiple"):
            figure1.train(figure1.Figure1(**{field: 777}))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--steps 0", "`steps` must be at least 1, got 0"),
            ("--seeds 0", "`seeds` must be at least 1, got 0"),
            ("--batch-size 0", "`batch_size` must be at least 1, got 0"),
            ("--batch-size 2000", "`batch_size` must be at most the 1500"),
            ("--hidden 100 0", r"`hidden` must be at least 1, got \(100, 0\)"),
            ("--learning-rate -1", "`learning_rate` must be positive"),
            ("--learning-rate nan", "`learning_rate` must be positive"),
            ("--bn-momentum 2", r"`bn_momentum` must lie in \[0, 1\], got 2"),
            ("--ink 128", "`ink` must be left out for grey 8x8 digits: .* got 128"),
            ("--out setup.cfg/x", "`out` must be a folder that can be written"),
        ],
    )
    def test_bad_options(self, options, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "setup.cfg").touch()
        options = ["--data-dir", str(tmp_path / "data"), *options.split()]
        with pytest.raises(SystemExit, match=f"^ValueError: {message}"):
            main.main(["figure1", *options])


class TestImages:
    """Tests the images that the networks are trained and evaluated on."""

    def shades(self, monkeypatch, **options):
        """Returns the different pixel values of each set of images of a run."""
        given = []

        def keep(runs, plan, train, held_out, kept, workers):
            given.extend([train["image"], held_out["image"], held_out["population"]])
            return {}

        monkeypatch.setattr(figure1.recording, "train", keep)
        figure1.train(figure1.Figure1(**options))
        return [np.unique(images).tolist() for images in given]

    def test_digits_are_grey(self, monkeypatch, tmp_path):
        for shades in self.shades(monkeypatch, data_dir=tmp_path):
            assert len(shades) == 17

    def test_mnist_is_binary(self, monkeypatch):
        images = np.arange(6 * 784, dtype=np.int64) % 256
        images = images.reshape(6, 28, 28, 1).astype(np.uint8)
        labels = np.zeros(6, np.int32)
        monkeypatch.setattr(datasets.reading, "load", lambda *_: (images, labels))
        for shades in self.shades(monkeypatch, dataset="mnist"):
            assert shades == [0, 1]

    def test_a_threshold_decides_only_the_numbers_of_binary_images(self):
        for dataset, ink in (("mnist", 64), ("digits", None)):
            config = figure1.Figure1(dataset=dataset)
            assert figure1.identity(config)["hp"]["ink"] == ink


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def command(data_dir, out, *options):
    return [
        sys.executable, "-m", "experiments", "figure1", *SHORT.split(),
        "--data-dir", str(data_dir), "--out", str(out), *options,
    ]  # fmt: skip


def run(*args):
    return subprocess.run(
        command(*args), cwd=ROOT, check=True, capture_output=True, text=True
    )


def ended_by(end, data_dir, out, after):
    """Ends a run by a signal once step `after` is saved; returns its stderr."""
    # The run inherits whether Ctrl-C is ignored, as in a background job of a shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(data_dir, out), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not any(  # Only the last two are kept.
        path.name.isdigit() and int(path.name) >= after
        for path in out.glob("checkpoints/*/*")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(end)
    _, said = process.communicate()
    assert process.returncode
    return said


@pytest.mark.exhaustive
def test_killed_and_resumed_gives_the_numbers_of_an_uninterrupted_run(
    data_dir, tmp_path
):
    whole = run(data_dir, tmp_path / "whole")
    assert "| with BN |" in whole.stdout
    name = "figure1_digits.json"
    expected = (tmp_path / "whole" / name).read_bytes()

    out = tmp_path / "killed"
    said = ended_by(signal.SIGINT, data_dir, out, after=100)
    assert said.endswith("\nStopped. Run the same command again to resume.\n")
    assert "Traceback" not in said
    ended_by(signal.SIGKILL, data_dir, out, after=300)
    assert not (out / name).exists()
    resumed = run(data_dir, out)
    assert "Resumed at step" in resumed.stdout
    assert (out / name).read_bytes() == expected
    assert not list(out.glob("checkpoints/*"))

    accuracy = json.loads((out / name).read_text())["accuracy"]["with_bn"]
    first, second = np.array(accuracy).T
    assert np.any(first != second)  # Seeds differ.

    again = run(data_dir, tmp_path / "whole")
    assert "This run is finished" in again.stdout
    assert (tmp_path / "whole" / name).read_bytes() == expected
