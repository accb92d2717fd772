import dataclasses
import shlex

import jax
import pytest
import tyro

from experiments import provenance, studies
from experiments.figure1 import study as figure1
from experiments.networks import mlp

STUDIES = sorted(studies.STUDIES)
CHANGED = {study: {"quick": True} for study in STUDIES} | {
    "accuracy": {"elements": (5, 7)},
    "accelerators": {"platform": "tpu", "network": "layer", "memory": False},
    "benchmark": {"quick": True, "rounds": 3},
    "device": {"quick": True},
    "figure1": {
        "dataset": "mnist",
        "seeds": 3,
        "hp": mlp.Hyperparameters(learning_rate=0.1, hidden=(5,), replacement=True),
    },
    "figure1_sweep": {"steps": 100},
    "fine_tune": {"new": "fashion_mnist", "steps": 10},
    "learning_rate_ladder": {"quick": True, "dataset": "cifar10"},
    "scale_invariance": {"quick": True, "scales": (1.0, 2.0)},
    "sync_cost": {},
}


@pytest.mark.parametrize("study", STUDIES)
def test_the_command_gives_the_options_back(study):
    for changes in ({}, CHANGED[study]):
        config = studies.STUDIES[study](**changes)
        words = shlex.split(provenance.command(study, config))
        assert words[:4] == ["python", "-m", "experiments", study]
        made = tyro.cli(
            studies.STUDIES[study],
            args=words[4:],
            config=(tyro.conf.OmitArgPrefixes,),
        )
        assert made == config
        assert bool(words[4:]) == bool(changes)


def test_folders_are_not_in_the_command(tmp_path):
    config = figure1.Figure1(out=tmp_path, data_dir=tmp_path)
    assert provenance.command("figure1", config) == "python -m experiments figure1"


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_folder_for_its_results(study):
    fields = {field.name for field in dataclasses.fields(studies.STUDIES[study])}
    assert "out" in fields


def test_device_and_versions():
    made = provenance.of("figure1", figure1.Figure1())
    assert "cores" in made["device"] or "CPU" in made["device"]
    assert made["versions"]["jax"] == jax.__version__
    given = provenance.of("figure1", figure1.Figure1(), "a GPU")
    assert given["device"] == "a GPU"
    line = provenance.line(given)
    assert line.startswith("Made by `python -m experiments figure1`, a GPU, flax ")
    assert f", jax {jax.__version__}, " in line
