import dataclasses

from experiments.accelerators import (
    lists,
)
from experiments.networks import norms
from experiments.programs import steps, targets


def test_cases_are_named_once_and_known():
    every = [*lists.all_cases(), *lists.memory_cases(), *lists.quick_cases()]
    assert len(set(lists.all_cases())) == len(lists.all_cases())
    for case in every:
        assert case.platform in targets.PLATFORMS
        assert case.target in targets.NAMES
        assert case.program in steps.PROGRAMS
        assert case.norm in norms.ALL
        assert (case.platform == "gpu") == (case.target == "h200")
        assert (case.devices > 1) == (case.style != "one")
    assert set(lists.quick_cases()) <= set(lists.all_cases())
    for case in lists.all_cases():  # What ratios are taken over is compiled too.
        same = {"statistics": "global", "norm": "flax"}
        flax = dataclasses.replace(case, **same)
        assert flax in lists.all_cases() or case.style == "jit_mesh"
