import dataclasses

from experiments.accelerators import (
    report,
)
from experiments.programs import cases
from tests.experiments.accelerators.rows import made


def test_the_summary_is_that_of_the_rows():
    cast = cases.Case(parameters="cast")
    rows = [
        made(dataclasses.replace(cast, norm=norm), cycles=cycles)
        for norm, cycles in {"flax": 100, "jaxbn": 78, "none": 50}.items()
    ]
    text = report.table({"rows": rows})
    title = "ResNet-50, parameters cast to bfloat16: cycles"
    assert f"| TPU v5e | {title} | 1.00 |  | **0.78** | 0.50 |" in text
    assert "| ResNet-50, v5e, cast | 0.78 | 0.780 | met |" in text
    itself = "ResNet-50, v5e, cast: the normalisation itself"
    assert f"| {itself} | 0.50 | 0.560 | missed |" in text
    assert "| ResNet-50, H200 | 0.96 |  | not known |" in text
