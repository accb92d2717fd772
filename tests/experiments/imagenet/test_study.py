"""The whole way: records on disk, eight devices, a run that was killed."""

import dataclasses
import json

import jax
import pytest

from experiments import __main__ as main
from experiments.imagenet import one_run, report, study
from experiments.images import source
from experiments.networks import inception

TINY = study.ImageNet(
    dataset="digits", validation="test", configurations=("BN-x5",), steps=4, epochs=1,
    record_every=2, checkpoint_every=2, batch_size=8, size=32, width=1 / 64,
    learning_rate=0.03, threads=2,
)  # fmt: skip


@pytest.fixture
def few_modules(monkeypatch):
    """Keeps two of the ten modules, so that the network compiles fast."""
    of_figure5 = inception.FIGURE5
    monkeypatch.setattr(
        inception, "FIGURE5", {name: of_figure5[name] for name in ("3a", "3c")}
    )


@pytest.mark.exhaustive
@pytest.mark.usefixtures("few_modules")
def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    assert jax.device_count() == 8
    splits = [source.read("digits", name, tmp_path) for name in ("train", "test")]
    splits[1] = splits[1]._replace(
        records=[splits[1].records[i] for i in range(20)], shard_lengths=(20,)
    )
    whole = one_run.train(
        dataclasses.replace(TINY, out=tmp_path / "whole"), "BN-x5", *splits
    )
    assert whole["step"] == [2, 4]
    assert all(0 <= value <= 1 for value in whole["accuracy"])

    config = dataclasses.replace(TINY, out=tmp_path / "killed")
    evaluated = one_run._evaluated

    def killed(*args):
        found = evaluated(*args)
        if int(args[1].step) == 4:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(one_run, "_evaluated", killed)
    with pytest.raises(KeyboardInterrupt):
        one_run.train(config, "BN-x5", *splits)
    monkeypatch.setattr(one_run, "_evaluated", evaluated)
    assert one_run.train(config, "BN-x5", *splits) == whole


@pytest.mark.exhaustive
@pytest.mark.usefixtures("few_modules")
def test_from_the_command_line(tmp_path, capsys):
    options = (
        "--dataset digits --validation test --configurations BN-x5 --steps 2 "
        "--record-every 1 --checkpoint-every 2 --batch-size 8 --size 32 --width .016 "
        f"--threads 2 --data-dir {tmp_path / 'data'} --out {tmp_path}"
    )
    main.main(["imagenet", *options.split()])
    result = json.loads((tmp_path / "imagenet_digits.json").read_text())
    assert result["images"] == {"train": 1500, "validation": 297}
    assert len(result["runs"]["BN-x5"]["accuracy"]) == 2
    assert "| BN-x5 |" in capsys.readouterr().out
    assert (tmp_path / "imagenet_digits.png").exists()
    assert not any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"configurations": ("BN-x6",)}, "`configurations` must be among"),
        ({"steps": 5}, "`steps` must be a multiple of `record_every`, 2, got 5"),
        ({"checkpoint_every": 3}, "`checkpoint_every` must be a multiple of"),
        ({"batch_size": 12}, "`batch_size` must be a multiple of the 8 devices, got"),
        ({"size": 16}, "`size` must be at least 32, got 16"),
        ({"width": 0.0}, "`width` must be positive"),
    ],
)
def test_bad_options(changed, message):
    with pytest.raises(ValueError, match=message):
        study.check(dataclasses.replace(TINY, **changed))


def test_too_few_images():
    split = source.Source([{}] * 7, (7,), 10)
    with pytest.raises(ValueError, match="`epochs` must be at least 5 for 4"):
        one_run.train(TINY, "BN-x5", split, split)


def test_a_set_that_is_not_prepared(tmp_path):
    config = dataclasses.replace(TINY, dataset="imagenet2012", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="not prepared"):
        study.measure(config)


def test_table():
    run = {"learning_rate": 0.03, "step": [10, 20, 30], "train_loss": [2.0, 1.0, 0.5],
           "loss": [2.0, 1.0, 0.6], "accuracy": [0.1, 0.5, 0.4]}  # fmt: skip
    better = {**run, "accuracy": [0.5, 0.6, 0.7]}
    result = {
        "config": json.loads(json.dumps(dataclasses.asdict(TINY), default=str)),
        "images": {"train": 1500, "validation": 297},
        "devices": 8,
        "runs": {"Inception": run, "BN-x5": better},
    }
    text = report.table(result)
    assert "| Inception | 0.03 | 20 | 0.5000 | 31.0 million | 0.722 |" in text
    assert "| BN-x5 | 0.03 | 10 | 0.7000 | 2.1 million | 0.730 |" in text
