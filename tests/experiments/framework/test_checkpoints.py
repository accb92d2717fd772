import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.framework import checkpoints

TREE = {"x": jnp.arange(3.0), "key": jax.random.key(7), "records": np.ones((2, 2))}


def plus(tree, value):
    return {"x": tree["x"] + value, "key": tree["key"], "records": tree["records"]}


def equal(a, b):
    assert jnp.all(jax.random.key_data(a["key"]) == jax.random.key_data(b["key"]))
    chex.assert_trees_all_equal((a["x"], a["records"]), (b["x"], b["records"]))


def test_newest_is_restored_and_two_are_kept(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path / "run")
    assert saved.restore(TREE) is None
    for step in (5, 10, 15):
        saved.save(step, plus(TREE, step))
    equal(saved.restore(TREE), plus(TREE, 15))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["10", "15"]
    saved.clear()
    assert not (tmp_path / "run").exists()


def test_ctrl_c_waits_for_the_end_of_a_checkpoint(tmp_path, monkeypatch):
    saved = checkpoints.Checkpoints(tmp_path)
    save = saved._manager.save

    def pressed_before(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return save(*args, **options)

    monkeypatch.setattr(saved._manager, "save", pressed_before)
    # A job in the background of a shell ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            saved.save(5, TREE)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    equal(saved.restore(TREE), TREE)


def test_half_written_checkpoint_is_ignored(tmp_path):
    checkpoints.Checkpoints(tmp_path).save(5, TREE)
    half_written = tmp_path / "10.orbax-checkpoint-tmp-1"
    half_written.mkdir()
    equal(checkpoints.Checkpoints(tmp_path).restore(TREE), TREE)
    assert not half_written.exists()


def test_damaged_checkpoint_is_ignored_with_a_message(tmp_path, capsys):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(5, TREE)
    saved.save(10, plus(TREE, 1))
    for path in (tmp_path / "10").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    saved = checkpoints.Checkpoints(tmp_path)
    equal(saved.restore(TREE), TREE)
    assert "Ignored an unreadable checkpoint: 10" in capsys.readouterr().out
    saved.save(10, plus(TREE, 2))  # Its place is free.
    equal(checkpoints.Checkpoints(tmp_path).restore(TREE), plus(TREE, 2))
