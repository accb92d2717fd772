"""Two operating-system processes, two devices each, gloo collectives."""

import functools
import itertools
import signal
import subprocess

import numpy as np
import pytest

import jaxbn
from experiments.framework import processes
from tests import (
    reference,
    train_by_policy,
    two_processes,
    two_processes_policies,
    two_processes_training,
    workers,
)


def test_equals_one_process(tmp_path):
    processes.finish(two_processes.__name__, str(tmp_path))
    scale, bias = two_processes.SCALE, two_processes.BIAS
    for style, case in itertools.product(("jit", "shard_map"), two_processes.MASKED):
        x, mask, dy = two_processes.make_batch(case).values()
        expected = reference.batch_norm(x, scale, bias, dy, mask=mask)
        mean, var = reference.updated(jaxbn.init_batch_stats(3), expected.moments)
        affine = {"dscale": expected.dscale, "dbias": expected.dbias}
        parts = [
            np.load(tmp_path / f"{style} {case} {process}.npz") for process in (0, 1)
        ]
        y, dx = (np.concatenate([part[key] for part in parts]) for key in ("y", "dx"))
        keep = mask[:, 0]
        assert_close = functools.partial(
            np.testing.assert_allclose, rtol=1e-5, err_msg=f"{style}, {case}"
        )
        assert_close(y[keep], expected.y[keep], atol=1e-5)
        assert_close(dx[keep], expected.dx[keep], atol=1e-5)
        for part in parts:
            for key, value in {"mean": mean, "var": var, **affine}.items():
                assert_close(part[key], value, atol=1e-4 if key in affine else 0)


@pytest.mark.exhaustive
def test_policies_of_synchronisation(tmp_path):
    processes.finish(two_processes_policies.__name__, str(tmp_path))
    kernel, batches = train_by_policy.KERNEL, two_processes_policies.BATCHES
    for name, (_, simulation) in two_processes_policies.POLICIES.items():
        expected = workers.train(simulation, kernel, batches)
        for process in (0, 1):
            made = np.load(tmp_path / f"{name} {process}.npz")
            train_by_policy.assert_equal(made, expected)


TRAINING = two_processes_training.__name__


@pytest.mark.exhaustive
def test_a_run_whose_process_died_goes_on_with_the_same_statistics(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    processes.finish(TRAINING, str(whole))

    survivor, dead = processes.start(TRAINING, str(broken), "die")
    try:
        survivor.communicate(timeout=240)
        dead.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail("a process hangs")
    finally:
        survivor.kill()
        dead.kill()
    assert dead.returncode == -signal.SIGKILL
    assert survivor.returncode != 0
    assert not (broken / "end 0.npz").exists()

    for output in processes.finish(TRAINING, str(broken)):
        assert f"starts at step {two_processes_training.DIES_AT}" in output
    ends = [
        np.load(out / f"end {process}.npz")
        for out in (whole, broken)
        for process in (0, 1)
    ]
    for end in ends[1:]:
        for name, array in ends[0].items():
            np.testing.assert_array_equal(end[name], array)
