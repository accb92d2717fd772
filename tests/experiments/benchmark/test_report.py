from experiments.benchmark import report
from experiments.measuring import peers


def test_aims_are_judged():
    row = {"over_jaxbn": {"flax.linen": [1.6, 1, 2], peers.LIMIT: [0.5, 0.4, 0.6]}}
    times = {"flax.linen": {"trace": 1.0, "compile": 1.0}}
    result = {
        "layers": {dtype: [{"both": row}] for dtype in ("float32", "bfloat16")},
        "depth": {"50": times | {"jaxbn": {"trace": 0.9, "compile": 1.2}}},
    }
    text = report._aims(result)
    assert "| flax.linen over jaxbn, float32 | 1.5 or more | 1.60 | met |" in text
    assert "| jaxbn over the limit, float32 | 1.3 or less | 2.00 | missed |" in text
    assert "| tracing of 50 layers, of Flax's | 1.0 or less | 0.90 | met |" in text
    assert "| both | 1.0 or less | 1.05 | missed |" in text
    assert "PyTorch" not in text  # Not measured.
