import pytest

from experiments.sync_policies import policies
from jaxbn import sync_policies


def test_every_name():
    made = {name: policies.by_name(name, 8, 100) for name in policies.NAMES}
    assert made["exact"] == sync_policies.Exact()
    assert made["groups of half"] == sync_policies.Group(4)
    assert made["frozen after half"] == sync_policies.FrozenAfter(50)
    assert made["stale, forward"] == sync_policies.Stale(0.8, backward=False)
    assert len(set(made.values())) == len(policies.NAMES)


@pytest.mark.parametrize("memory", [0.0, 0.95])
def test_memories(memory):
    both, forward = (
        policies.by_name(f"stale, a = {memory}{suffix}", 8, 100)
        for suffix in ("", ", forward")
    )
    assert both == sync_policies.Stale(memory)
    assert forward == sync_policies.Stale(memory, backward=False)
