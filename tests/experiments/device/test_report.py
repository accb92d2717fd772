from experiments.device import report


def row(norm, ms, **changed):
    made = {"setting": "command buffers", "program": "layer", "dtype": "bfloat16",
            "images": 64, "norm": norm, "ms": ms, "over_flax": [ms / 4, ms / 5, ms / 2],
            "traffic_MB": 100 * ms, "copy_GBps": 200, "conditionals": 0,
            "temporary_MB": 7.0}  # fmt: skip
    return made | changed


def test_the_table_has_prediction_beside_time():
    rows = [
        row("flax", 4.0),
        row("jaxbn", 3.0),
        row("torch", 2.0, traffic_MB=None, conditionals=None, temporary_MB=None),
        row("haiku", 0.0, error="ImportError: none"),
    ]
    result = {"rounds": 5, "rows": rows}
    lines = report.table(result).splitlines()
    assert "5 rounds" in lines[0]
    # 300 MB take 1.5 ms at 200 GB/s: half of 3 ms.
    assert "| jaxbn | 3.000 | 0.75 (0.60 to 1.50) | 0.75 | 0.50 | 0 | 7 |" in lines
    assert "| torch | 2.000 | 0.50 (0.40 to 1.00) |  |  |  |  |" in lines
    assert "| haiku | ImportError: none |  |  |  |  |  |" in lines
