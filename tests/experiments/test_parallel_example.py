import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_every_style_ends_with_the_same_statistics():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.parallel_example"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    results = {}
    for style, mean, var in re.findall(
        r"^(\w+) +\[(.*?)\] \[(.*?)\]$", done.stdout, re.MULTILINE
    ):
        results[style] = np.array([mean.split(), var.split()], float)
    assert list(results) == ["jit", "shard_map", "pmap", "vmap"]
    for style, result in results.items():  # Rounding of 20 float32 averages.
        np.testing.assert_allclose(result, results["jit"], rtol=2e-6, err_msg=style)


def test_it_stays_short():
    text = (ROOT / "experiments" / "parallel_example.py").read_text()
    assert len(text.splitlines()) <= 40
