from experiments.measuring import hlo

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
