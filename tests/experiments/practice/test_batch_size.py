import jax
import numpy as np
import pytest

from experiments.practice.batch_size import report, study


def result(bn=(0.6, 0.8, 0.7), gn=(0.8, 0.8, 0.7), ln=(0.8, 0.8, 0.7), batch=0.7):
    sizes = {}
    for size, *means in zip((2, 16, 128), bn, gn, ln, strict=True):
        rows = [[[0.1, 0.1], [mean - 0.01, mean + 0.01]] for mean in means]
        sizes[str(size)] = {
            "BN": {"running": rows[0], "population": rows[0], "batch": [[batch] * 2]},
            "GN": {"running": rows[1]},
            "LN": {"running": rows[2]},
        }
    return {"options": {"epochs": 2, "seeds": 2}, "sizes": sizes}


def test_holds():
    assert report.best_size(result()) == 16
    assert report.verdict(result()) == "holds"
    text = report.table(result())
    assert "0.8000 ± 0.0100" in text
    assert text.index("| 16 |") < text.index("| 128 |")  # Sorted as numbers.


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"bn": (0.6, 0.8, 0.9)}, 0),
        ({"bn": (0.795, 0.8, 0.7), "batch": 0.9}, 1),
        ({"ln": (0.1, 0.8, 0.7)}, 2),
        ({"batch": 0.5}, 3),
    ],
)
def test_holds_partly(changed, place):
    found = list(report.statements(result(**changed)).values())
    assert found == [i != place for i in range(4)]
    assert report.verdict(result(**changed)) == "holds partly"


def test_does_not_hold():
    turned = result(bn=(0.9, 0.8, 0.7), gn=(0.5, 0.9, 0.9), batch=0.5)
    assert report.verdict(turned) == "does not hold here"


@pytest.mark.exhaustive
def test_the_learning_rate_is_in_proportion():
    config = study.BatchSize(hidden=(10,))
    for size in (2, 512):
        run = study._runs(config, size, 6)[-1]
        state = run.init(jax.random.key(0))
        rate = state.opt_state.hyperparams["learning_rate"]
        np.testing.assert_allclose(rate, 0.002 * size, rtol=1e-6)
        assert run.batch_size == size
