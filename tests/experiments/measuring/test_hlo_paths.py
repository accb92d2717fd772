from experiments.measuring import hlo_paths

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
