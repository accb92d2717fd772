import numpy as np
import pytest

from experiments.scale_invariance import figure, report


def make_result(error=1e-7, off=1.0, last=2.0, singular=1.0):
    norm = np.ones((2, 1, 2, 2))  # [records, seeds, scales, layers]
    norm[:, :, 1] = (16.0, last)[0]
    norm[-1, :, 1] = last
    run = {
        "accuracy": [[0.5, 0.6]],
        "norm": norm.tolist(),
        "predicted": (off * norm).tolist(),
        "angle": [[[0.1, 0.1]] * 2],
        "singular": [[[singular, 1.0]]] * 2,
    }
    return {
        "config": {"scales": [1.0, 4.0], "activations": ["relu"], "learning_rate": 1.0},
        "steps": [1, 2],
        "layer": [
            {"factor": 10.0, "epsilon": 0.0, "errors": [error, error, error]},
            {"factor": 0.1, "epsilon": 1e-5, "errors": [1.0, 1.0, 1.0]},
        ],
        "runs": {"with_bn_relu": run, "without_bn_relu": run},
    }


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({}, None),
        ({"error": 1e-3}, "the identities"),
        ({"off": 1.5}, "with BN |W| grows"),
        ({"last": 9.0}, "with BN the effective"),
        ({"singular": 3.0}, "with BN the singular"),
    ],
)
def test_verdicts(change, claim):
    lines = report.table(make_result(**change)).split("\n\n")[1].split("\n")
    assert len(lines) == 4
    for line in lines:
        fails = claim is not None and line.startswith(f"- {claim}")
        assert line.endswith("**does not hold here**" if fails else "**holds**")


def test_figure_is_drawn():
    assert len(figure.draw(make_result()).axes) == 3
