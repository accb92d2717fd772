"""Tests which layers `where` selects."""

import pytest

from jaxbn import selection

PATHS = ("bn", "encoder/block_0/bn", "encoder/block_1/norm", "head/bn")


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        (None, PATHS),
        ("bn", PATHS[:1]),
        ("encoder", PATHS[1:3]),
        ("encoder/block_?", PATHS[1:3]),
        ("*/bn", (PATHS[1], PATHS[3])),
        (["head", "*norm"], PATHS[2:]),
        (lambda path: path.startswith("h"), PATHS[3:]),
        ("enc", ()),
        ("BN", ()),
    ],
)
def test_patterns_modules_and_functions(where, meant):
    assert tuple(filter(selection.as_predicate(where), PATHS)) == meant


@pytest.mark.parametrize("where", [3, ["a", 1], b"bn"])
def test_what_is_no_path(where):
    with pytest.raises(TypeError, match="`where` must be a pattern"):
        selection.as_predicate(where)


def test_none_that_are_meant():
    selection.check_any("bn", ["bn"], PATHS)
    with pytest.raises(
        ValueError, match=r"got 'bm'; the layers of jaxbn are .*head/bn"
    ):
        selection.check_any("bm", [], PATHS)
