import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as main
from experiments.sync_policies import parts, study
from jaxbn import sync_policies

OPTIONS = (
    "--quick --steps 130 --record-every 65 --hidden 12 --probes 2 --seeds 1 "
    "--tested 100"
)


@pytest.mark.exhaustive
def test_from_the_command_line(tmp_path, capsys):
    main.main(["sync_policies", *OPTIONS.split(), "--out", str(tmp_path)])
    made = json.loads((tmp_path / "sync_policies_digits.json").read_text())
    assert set(made["parts"]) == {"examples", "sorted", "drift"}
    assert made["steps"] == [65, 130]
    exact = made["parts"]["examples"]["8 x 2"]["exact"]
    assert exact["accuracy"][-1][0] > 0.3
    drift = made["parts"]["drift"]["8 x 2"]["exact"]["drift"][0][0]
    assert drift[0][0] < drift[-1][0]
    assert "Verdict" in capsys.readouterr().out
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.exhaustive
def test_a_residual_network():
    config = study.SyncPolicies(
        network="residual", channels=2, tables=("examples", "sorted")
    )
    study.check(config)
    part = next(p for p in parts.parts(config, (4, 4, 1)) if p.setting.examples == 2)
    run = part.runs["stale"]
    assert run.convolves
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.uniform(size=(2, 8, 4, 4, 1)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 10, (2, 8))),
    }
    state = run.init(jax.random.key(0))
    new = jax.jit(run.step)(state, batch)
    assert int(new.step) == 1
    said = sync_policies.said_of(new.batch_sync)
    assert len(said) == 5
    assert all(np.all(layer["count"] > 0) for layer in said.values())
    test = {"image": batch["image"][:, 0], "label": batch["label"][:, 0]}
    assert 0 <= run.record(new, test)["accuracy"] <= 1


def test_every_table_has_its_trainings():
    made = parts.parts(study.SyncPolicies(), (4,))
    names = [run.name for part in made for run in part.runs.values()]
    assert len(set(names)) == len(names)
    assert {part.name for part in made} == set(study._TABLES)
    alone = next(part for part in made if part.setting.name == "8 x 1")
    assert "local" not in alone.runs
    assert "stale" in alone.runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usual": 3}, "`usual` must be one of `examples`"),
        ({"examples": (1,), "usual": 1}, "at least 2"),
        ({"policies": ("exact", "stale")}, "`policies` must contain"),
        ({"policies": ("exact", "new")}, "`policies` must be among"),
        ({"tables": ("sorted",)}, "`tables` must contain"),
        ({"network": "residual"}, "without 'why' and 'drift'"),
        ({"record_every": 60}, "`record_every` must be more than 64"),
        ({"workers": 1}, "`workers` must be at least 2"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        study.check(study.SyncPolicies(**options))
