from experiments import verdicts


def test_all_some_or_none():
    assert verdicts.of(True, True) == "holds"
    assert verdicts.of(True, False) == "holds partly"
    assert verdicts.of(False, False) == "does not hold here"
