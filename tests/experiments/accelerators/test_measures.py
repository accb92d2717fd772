from experiments.accelerators import (
    measures,
)


def test_reasons_are_short():
    message = "RESOURCE_EXHAUSTED: Ran   out of memory\n\nmore " + 999 * "x"
    assert measures.reason(message) == "RESOURCE_EXHAUSTED: Ran out of memory"
    assert measures.reason("") == "no message"


def test_collectives_are_counted_by_what_they_are_for():
    assert measures.kind("jit(step)/jvp(Net)/BatchNorm_0/reduce_sum") == "forward"
    backward = "jit(step)/transpose(jvp(Net))/BatchNorm_0/psum"
    assert measures.kind(backward) == "backward"
    assert measures.kind("jit(f)/transpose(jvp(Net))/Conv_0/conv") == "gradients"
    assert measures.kind("jit(step)/shard_map/psum") == "gradients"
    assert measures.kind("") == "gradients"
    one = measures.hlo.Collective("all-reduce", 4, True, backward, True, 2, 30)
    counts = measures.count([one])
    assert counts["conditional"] == counts["asynchronous"] == 1
    assert (counts["backward"], counts["kernels_beside"]) == (0, 2)
    assert counts["cycles_beside"] == 30
