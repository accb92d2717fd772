"""Two operating-system processes, two devices each, gloo collectives."""

import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import jaxbn
from tests import reference

ROOT = pathlib.Path(__file__).parent.parent
SCALE, BIAS = np.float32([1, 2, 0.5]), np.float32([0, 1, -1])


def start(out, *options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes", str(process), str(port),
             str(out), *options],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip


def make_batch():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 3)) + np.arange(16)[:, None]
    mask = np.ones((16, 1), bool)
    mask[1:4] = mask[12:] = False
    dy = np.where(mask, rng.standard_normal((16, 3)), 0)
    return np.where(mask, x, np.nan).astype(np.float32), mask, dy.astype(np.float32)


def test_equals_one_process(tmp_path):
    for process in start(tmp_path):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    x, mask, dy = make_batch()
    expected = reference.batch_norm(x, SCALE, BIAS, dy, mask=mask)
    mean, var = reference.updated(jaxbn.init_batch_stats(3), expected.moments)
    for style in ("jit", "shard_map"):
        parts = [np.load(tmp_path / f"{style}_{process}.npz") for process in (0, 1)]
        y, dx = (np.concatenate([part[key] for part in parts]) for key in ("y", "dx"))
        keep = mask[:, 0]
        np.testing.assert_allclose(y[keep], expected.y[keep], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(dx, expected.dx, rtol=1e-5, atol=1e-5)
        for part in parts:
            np.testing.assert_allclose(part["mean"], mean, rtol=1e-5)
            np.testing.assert_allclose(part["var"], var, rtol=1e-5)
            np.testing.assert_allclose(part["dscale"], expected.dscale, atol=1e-4)
            np.testing.assert_allclose(part["dbias"], expected.dbias, atol=1e-4)


def test_the_survivor_of_a_dead_process_ends_with_an_error(tmp_path):
    survivor, dead = start(tmp_path, "die")
    try:
        survivor.communicate(timeout=240)
        dead.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        pytest.fail("a process hangs")
    finally:
        survivor.kill()
        dead.kill()
    assert dead.returncode == 9
    assert survivor.returncode != 0
