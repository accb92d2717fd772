from experiments import verdicts


def test_all_some_or_none():
    assert verdicts.of(True, True) == "holds"
    assert verdicts.of(True, False) == "holds partly"
    assert verdicts.of(False, False) == "does not hold here"


def test_expected():
    page = verdicts.expected({"A": True, "B": False}, "Remark.")
    assert page.startswith("Verdict: holds partly. Remark.\n\n| expected | found |")
    assert page.endswith("| A | yes |\n| B | no |")
    assert verdicts.expected({"A": True}).startswith("Verdict: holds.\n\n")


def test_table():
    page = verdicts.table({"A": [True, False], "B": [True]})
    assert page.endswith("| A | **holds partly** |\n| B | **holds** |")
