import dataclasses

from experiments import output
from experiments.accelerators import (
    figure,
    measures,
    report,
    results,
)
from experiments.programs import cases
from tests.experiments.accelerators.rows import CASE, made, network_rows


def test_report_of_rows(tmp_path):
    several = {"program": "short_resnet", "style": "shard_map", "devices": 64}
    pod = cases.Case(target="v5e:8x8", **several)
    counts = measures.count([]) | {"forward": 17, "backward": 34, "gradients": 1}
    few = cases.Case(target="v5e:2x4", style="jit", devices=8)
    big = dataclasses.replace(CASE, program="resnet50", activation="leaky_relu")
    cast = cases.Case(program="resnet50", parameters="cast")
    refused = "RESOURCE_EXHAUSTED: Ran out of memory (17.00G)"
    rows = [
        *network_rows(none=40, flax=80, jaxbn=60),
        made(dataclasses.replace(cast, norm="flax"), cycles=10),
        made(cast, cycles=9),
        made(pod, collectives=counts),
        made(few),
        made(dataclasses.replace(CASE, norm="haiku"), error="it crashed"),
        made(dataclasses.replace(big, images=16)),
        made(dataclasses.replace(big, images=32), error=refused),
    ]
    about = {"layers": 17, "predicted_ms": {"8": 0.1, "64": 0.2, "256": 0.4}}
    result = {"rows": rows, "pods": {"short_resnet": about}}
    text = report.table(result)
    tables = [line for line in text.splitlines() if line.endswith(":")]
    assert tables
    assert all(report.NOT_RUN in line for line in tables)
    assert "| resnet50 | bfloat16 | relu | jaxbn | 0.75 |" in text
    assert "| resnet50 | bfloat16 | relu | jaxbn | 0.50 |" in text
    assert "| resnet50 | bfloat16, cast | relu | jaxbn | 0.90 |" in text
    assert "| global | 1.00 | 2.00 | 0.00 | 1 | 2.00 | 0.200 |" in text
    assert "| TPU v5e | jaxbn | 16 | 16: 3, 32: 18254 (too many) |" in text
    assert "| haiku | it crashed |" in text
    assert report.table({"rows": rows[::-1], "pods": result["pods"]}) == text
    path = tmp_path / "accelerators.json"
    output.write_json(path, results.ABOUT | result)
    assert text in report.write(path)
    assert (tmp_path / "accelerators.png").stat().st_size > 1000


def test_report_of_nothing():
    assert report.NOT_RUN in report.table({"rows": []})
    assert figure.draw({"rows": []}).axes
