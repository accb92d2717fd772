import pytest

from experiments.measuring import hlo_text

SUM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}
"""


def test_instructions():
    program = hlo_text.parse(
        SUM
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
