import dataclasses
import json

import pytest

from experiments.data import source
from experiments.paper.imagenet import one_run, report, study

TINY = study.ImageNet(
    dataset="digits", validation="test", configurations=("BN-x5",), steps=4, epochs=1,
    record_every=2, checkpoint_every=2, batch_size=8, size=32, width=1 / 64,
    learning_rate=0.03, threads=2,
)  # fmt: skip


def test_too_few_images():
    split = source.Source([{}] * 7, (7,), 10)
    with pytest.raises(ValueError, match="`epochs` must be at least 5 for 4"):
        one_run.train(TINY, "BN-x5", split, split)


def test_a_set_that_is_not_prepared(tmp_path):
    config = dataclasses.replace(TINY, dataset="imagenet2012", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="not prepared"):
        config.measure()


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
