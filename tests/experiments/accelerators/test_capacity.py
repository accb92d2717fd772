from experiments.accelerators import (
    capacity,
)
from experiments.programs import cases, targets
from tests.experiments.accelerators.rows import made


def needs(bytes_per_image, fixed=1e9):
    """Returns a fake GPU compiler with linear memory, and the batch sizes it gets."""
    seen = []

    def compile_case(case):
        seen.append(case.images)
        total = (fixed + bytes_per_image * case.images) / 1e6
        return made(case, temporary_MB=total, argument_MB=0.0)

    return compile_case, seen


def test_the_largest_batch_is_found_on_a_line():
    case = cases.Case(platform="gpu", target="h200", program="resnet50")
    compile_case, seen = needs(50e6)
    points = capacity.search(case, compile_case)
    assert capacity.largest(points, capacity.STEP["gpu"]) == "2688"  # 140e9 / 50e6
    assert seen == [1024, 2048, 2688, 2816]


def test_the_largest_batch_of_a_compiler_that_refuses():
    case = cases.Case(target="v5e:2x2", program="resnet50")
    limit = targets.MEMORY["v5e:2x2"]

    def compile_case(case):
        # Near the limit the compiler saves memory: there is no one line.
        total = 40e6 * case.images if case.images < 320 else 10.24e9 + 8e6 * case.images
        if total > limit:
            needed = f"the total memory required ({total / 2**30:.2f}G)"
            return made(case, error=f"RESOURCE_EXHAUSTED: {needed} exceeds (15.75G)")
        return made(case, temporary_MB=total / 1e6, argument_MB=0.0)

    points = capacity.search(case, compile_case)
    # (limit - 10.24e9) / 8e6
    assert capacity.largest(points, capacity.STEP["tpu"]) == "832"


def test_first_sizes_that_do_not_fit():
    case = cases.Case(platform="gpu", target="h200", program="resnet50")
    compile_case, seen = needs(200e6)
    points = capacity.search(case, compile_case)
    assert capacity.largest(points, capacity.STEP["gpu"]) == "640"
    assert len(seen) <= 6


def test_a_search_that_cannot_say():
    case = cases.Case(platform="gpu", target="h200", program="resnet50")
    points = capacity.search(case, lambda case: made(case, error="SIGSEGV"))
    assert points == {}
    assert capacity.largest({256: capacity.Point(True, 1e9)}, 16) == "at least 256"
    found = {256: capacity.Point(True, 1e9), 512: capacity.Point(False, None)}
    assert capacity.largest(found, 16) == "256 to 496"
