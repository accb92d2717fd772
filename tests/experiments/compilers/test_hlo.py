import pytest

from experiments.compilers import hlo, hlo_paths, hlo_text

SUM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}
"""


def test_traffic_of_large_arrays():
    text = """
ENTRY %main (x: f32[4,2], y: bf16[4,2]) -> f32[4,2] {
  %x = f32[4,2]{1,0} parameter(0)
  y = bf16[4,2]{1,0} parameter(1)
  %sum = f32[2]{0} fusion(%x, y), kind=kLoop, calls=%a
  %bitcast = f32[2,4]{1,0} bitcast(%x)
  %small = f32[2]{0} add(%sum, %sum)
  ROOT %z = f32[4,2]{1,0} fusion(%bitcast, %bitcast, %sum), kind=kLoop, calls=%b
}
"""
    assert hlo.traffic(text, 8) == hlo.Traffic(2, 32 + 16 + 32, 32)
    assert hlo.traffic(text) == hlo.Traffic(3, (32 + 16) + 8 + (32 + 8), 8 + 8 + 32)


def test_traffic_of_tuples_and_libraries():
    text = """
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %conv = (f32[8]{0}, u8[99]{0}) custom-call(%x), custom_call_target="__cudnn$conv"
  %y = f32[8]{0} get-tuple-element(%conv), index=0
  %two = (f32[2]{0}, f32[8]{0}) fusion(%y, %x), kind=kInput, calls=%a
  %sum = f32[2]{0} get-tuple-element(%two), index=0
  %start = f32[2]{0} all-reduce-start(%sum), to_apply=%add
  %done = f32[2]{0} all-reduce-done(%start)
  ROOT %z = f32[8]{0} copy(%y)
}
"""
    assert hlo.traffic(text) == hlo.Traffic(2, (32 + 32) + 32, (8 + 32) + 32)


def test_traffic_of_a_tpu_is_that_of_its_main_memory():
    text = """
ENTRY %main (x: f32[8], w: f32[4]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %w = f32[4]{0:T(128)} parameter(1)
  %start = (f32[4]{0:T(128)S(1)}, f32[4]{0:T(128)}, u32[]{:S(2)}) copy-start(%w)
  %near = f32[4]{0:T(128)S(1)} copy-done(%start)
  %y = f32[8]{0:T(128)S(1)} fusion(%x, %near), kind=kOutput, calls=%a
  %half = ((f32[8]{0:T(128)}), f32[2]{0:T(128)S(1)}, s32[]) slice-start(%x)
  %part = f32[2]{0:T(128)S(1)} slice-done(%half)
  %out = (f32[8]{0:T(128)}, f32[8]{0:T(128)S(1)}, u32[]) copy-start(%y)
  ROOT %z = f32[8]{0:T(128)} copy-done(%out)
}
"""
    # The weights, the input and a slice of it are read, the result is written.
    assert hlo.traffic(text) == hlo.Traffic(1, 16 + 32 + 8, 32)


def test_cycles_and_conditionals():
    estimate = 'backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}'
    text = f"""
%fused (p: f32[4]) -> f32[4] {{
  ROOT %f = f32[4] add(%p, %p), {estimate.format(7)}
}}
%often (p: f32[4]) -> f32[4] {{
  ROOT %f = f32[4] fusion(%p), calls=%fused, {estimate.format(10)}
}}
%rare (p: f32[4]) -> f32[4] {{
  ROOT %f = f32[4] fusion(%p), calls=%fused, {estimate.format(20)}
}}
ENTRY %main (x: f32[4]) -> f32[4] {{
  %a = f32[4] fusion(%x), calls=%fused, {estimate.format(100)}
  %c = f32[4] conditional(%i, %a, %a), branch_computations={{%often, %rare}}
  ROOT %d = f32[4] conditional(%i, %c, %c), true_computation=%often, \
false_computation=%rare
}}
"""
    assert hlo.cycles(text) == hlo.Cycles(100, 30)
    assert hlo.conditionals(text) == 2


def test_collectives_in_branches_are_told_apart():
    text = (
        SUM
        + """
%rare (p: (f32[4])) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%p), to_apply=%sum
}
%called (p: (f32[4])) -> f32[4] {
  ROOT %s = f32[4]{0} all-reduce(%p), to_apply=%sum
}
%often (p: (f32[4])) -> f32[4] {
  ROOT %t = f32[4]{0} call(%p), to_apply=%called
}
ENTRY %main (x: f32[2,3]) -> f32[4] {
  %one = (f32[2,3]{1,0}, bf16[5]{0}) all-reduce(%x, %y), to_apply=%sum
  %two = f32[8]{0} all-gather-start(%x)
  ROOT %c = f32[4]{0} conditional(%i, %p, %p), branch_computations={%often, %rare}
}
"""
    )
    assert hlo.collectives(text) == [
        hlo.Collective("all-reduce", 16, True),
        hlo.Collective("all-reduce", 16, True),
        hlo.Collective("all-reduce", 34, False),
        hlo.Collective("all-gather", 32, False),
    ]


def test_what_runs_beside_an_asynchronous_collective():
    estimate = 'backend_config={"window_config":{"estimated_cycles":"50"}}'
    text = (
        SUM
        + f"""
%wrapped (p: f32[4]) -> f32[4] {{
  ROOT %r = f32[4]{{0}} all-reduce(%p), to_apply=%sum, metadata={{op_name="wrapped"}}
}}
ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  %merged = f32[4]{{0}} fusion(%x), calls=%a, metadata={{op_name="jvp(BatchNorm)"}}
  %start = f32[4]{{0}} all-reduce-start(%merged), to_apply=%sum
  %beside = f32[4]{{0}} fusion(%x), calls=%a, {estimate}
  %same = f32[4]{{0}} bitcast(%beside)
  %done = f32[4]{{0}} all-reduce-done(%start)
  %begin = ((f32[4]), f32[4], u32[]) async-start(%done), calls=%wrapped
  %one = f32[4]{{0}} fusion(%x), calls=%a, {estimate}
  %step = ((f32[4]), f32[4], u32[]) async-update(%begin)
  %two = f32[4]{{0}} fusion(%x), calls=%a, {estimate}
  %end = f32[4]{{0}} async-done(%step)
  ROOT %last = f32[4]{{0}} fusion(%end), calls=%a, {estimate}
}}
"""
    )
    assert hlo.collectives(text) == [
        hlo.Collective("all-reduce", 16, False, "wrapped", True, 2, 100),
        hlo.Collective("all-reduce", 16, False, "jvp(BatchNorm)", True, 1, 50),
    ]


def test_traffic_of_what_is_only_sliced():
    text = """
%part (p0: f32[8,4], p1: f32[4]) -> f32[4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %bitcast = f32[32]{0} bitcast(%p0)
  %slice = f32[4]{0} slice(%bitcast), slice={[0:4]}
  ROOT %sum = f32[4]{0} add(%slice, %p1)
}

ENTRY %main (x: f32[8,4], y: f32[4]) -> f32[4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = f32[4]{0} parameter(1)
  ROOT %z = f32[4]{0} fusion(%x, /*index=1*/%y), kind=kLoop, calls=%part
}
"""
    assert hlo.traffic(text) == hlo.Traffic(1, 16 + 16, 16)


PROGRAM = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%exact (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %inner = f32[8,8]{1,0} all-reduce(%p), replica_groups={}, to_apply=%add
}

%alone (q: f32[8,8]) -> f32[8,8] {
  ROOT %q = f32[8,8]{1,0} parameter(0)
}

%product (u: f32[8,8]) -> f32[8,8] {
  %u = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%u, %u), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[8,8], which: pred[]) -> (f32[8,8], f32[8,8]) {
  %x = f32[8,8]{1,0} parameter(0)
  %which = pred[] parameter(1)
  %first = f32[8,8]{1,0} all-reduce(%x), replica_groups={}, to_apply=%add
  %begun = f32[8,8]{1,0} all-reduce-start(%first), replica_groups={}, to_apply=%add
  %ended = f32[8,8]{1,0} all-reduce-done(%begun)
  %chosen = f32[8,8]{1,0} conditional(%which, %ended, %ended), true_computation=%exact, false_computation=%alone
  %y = f32[8,8]{1,0} fusion(%chosen), kind=kLoop, calls=%product
  %last = f32[8,8]{1,0} all-reduce(%y), replica_groups={}, to_apply=%add
  ROOT %out = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%y, %last)
}
"""  # noqa: E501


def test_a_layer_waits_for_all_but_the_last():
    found = hlo_paths.waiting(PROGRAM)
    assert (found.collectives, found.waited_for, found.in_a_row) == (3, 2, 3)
    assert (found.conditional, found.conditional_waited_for) == (1, 1)
    assert (found.bytes, found.conditional_bytes) == (3 * 256, 256)


def test_none_waits_where_nothing_is_multiplied_after_it():
    text = PROGRAM.replace("fusion(%chosen)", "fusion(%x)")
    found = hlo_paths.waiting(text)
    assert (found.waited_for, found.conditional_waited_for) == (0, 0)
    assert found.in_a_row == 2


def test_products_of_libraries():
    call = 'custom-call(%chosen), custom_call_target="__cublas$gemm"'
    text = PROGRAM.replace("fusion(%chosen), kind=kLoop, calls=%product", call)
    assert hlo_paths.waiting(text).waited_for == 2
    text = text.replace("__cublas$gemm", "TopK")
    assert hlo_paths.waiting(text).waited_for == 0


SUM_HLO_TEXT = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}
"""


def test_instructions():
    program = hlo_text.parse(
        SUM_HLO_TEXT
        + """
ENTRY %main.7 (x: bf16[4,2]) -> (f32[4], pred[]) {
  ROOT %both.1 = (f32[4]{0:T(128)S(1)}, /*index=1*/pred[]) fusion(%x, %x, %y.2), \
kind=kLoop, calls=%sum, metadata={op_name="jit(f)/x[\\"a\\"]" stack_frame_id=3}, \
backend_config={"window_config":{"estimated_cycles":"1825"}}
}
"""
    )
    assert program.entry == "main.7"
    assert [each.name for each in program.computations["sum"]] == ["add"]
    (both,) = program.main()
    assert (both.name, both.op) == ("both.1", "fusion")
    assert both.operands == ("x", "x", "y.2")
    assert both.results == (hlo_text.Array(4, 16, 1), hlo_text.Array(1, 1, 0))
    assert both.op_name == r"jit(f)/x[\"a\"]"
    assert (both.cycles, both.called, both.branches) == (1825, ["sum"], [])


@pytest.mark.parametrize(
    ("array", "size"),
    [
        ("f32[2,3]", 24), ("bf16[5]", 10), ("f8e4m3fn[3]", 3), ("s4[3]", 2),
        ("c64[2]", 16), ("token[]", 0), ("pred[]", 1),
    ],
)  # fmt: skip
def test_bytes(array, size):
    text = f"ENTRY %m (x: f32[]) -> f32[] {{\n  %a = {array} parameter(0)\n}}"
    assert hlo_text.parse(text).main()[0].results[0].bytes == size
