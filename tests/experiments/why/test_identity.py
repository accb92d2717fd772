import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.why.identity import figure, layer, report, study


@pytest.mark.exhaustive
@pytest.mark.parametrize("ratio", layer.RATIOS)
def test_identity_forwards(ratio):
    found = layer.errors(ratio)
    # Rounding of the input itself, and of the mean.
    assert found["train"] < 1e-6 + 1e-7 * ratio
    assert found["inference"] < 1e-6 + 2e-7 * ratio
    assert found["inference_gradient"] < 1e-6


def test_gradient_loses_two_directions_of_as_many_as_examples():
    found = layer.errors(1.0)["train_gradient"]
    np.testing.assert_allclose(found, np.sqrt(2 / layer.EXAMPLES), rtol=0.1)


def make_result(train=1e-7, gradient=0.0, scale=0.01, residual=0.1):
    def curves(scale, residual):
        return {
            "scale": [[1.0], [scale]],
            "bias": [[1.0], [0.01]],
            "training": [[1.0], [residual]],
            "evaluation": [[1.0], [0.001]],
        }

    errors = {
        "train": train,
        "inference": 1e-7,
        "train_gradient": gradient,
        "inference_gradient": 0.0,
    }
    return {
        "steps": [1, 2],
        "channels": 5,
        "layer": [{"ratio": 1.0, "errors": errors}],
        "without_affine": 10.0,
        "learnt": {"100": curves(0.01, 0.01), "10": curves(scale, residual)},
    }


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({}, None),
        ({"train": 0.1}, "these values"),
        ({"gradient": 0.1}, "they leave"),
        ({"scale": 0.2}, "training finds"),
        ({"residual": 0.01}, "what remains"),
    ],
)
def test_verdicts(changes, claim):
    result = make_result(**changes)
    lines = report.table(result).split("\n\n")[1].split("\n")[2:]
    assert len(lines) == 4
    for line in lines:
        fails = claim is not None and line.startswith(f"| {claim}")
        assert ("**holds** |" not in line) == fails
    assert len(figure.draw(result).axes) == 3


def test_sizes_in_their_order():
    page = report.table(make_result())
    assert page.index("| 10 | 0.010") < page.index("| 100 | 0.010")


@pytest.mark.exhaustive
def test_full_batches_find_deviation_and_mean():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((30, 2)) * [2.0, 0.5] + [1.0, -1.0])
    run = study.make_run(30, 0.3, 2)
    state, step = jax.jit(run.init)(jax.random.key(0)), jax.jit(run.step)
    for _ in range(60):
        state = step(state, {"x": x})
    found = run.record(state, {"x": x, "mean": x.mean(0), "std": x.std(0)})
    assert found["scale"] < 1e-4  # .7^60, and epsilon over the variance.
    assert found["bias"] < 1e-4
    assert found["training"] < 1e-8
