from experiments.device import report
from tests.experiments.device.rows import row


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
