"""Collectives and memory traffic of a compiled program, read from its HLO text."""

import math
import re
from typing import NamedTuple

_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1}
_OPS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


class Collective(NamedTuple):
    """One collective operation."""

    op: str
    bytes: int  # Of its result, on one device.
    conditional: bool  # In a branch: runs only where the predicate says so.


def collectives(text: str) -> list[Collective]:
    """Those of a compiled program, in the order of the text.

    Args:
      text: `compiled.as_text()`.
    """
    branches = set()
    for names in re.findall(r"branch_computations=\{([^}]*)\}", text):
        branches.update(name.strip().lstrip("%") for name in names.split(","))
    for name in re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", text):
        branches.add(name)
    found, computation = [], ""
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = opened[1]
        operation = re.search(rf"= (.+?) ({_OPS})(?:-start)?\(", line)
        if operation:
            shapes, op = operation.groups()
            size = sum(
                _BYTES[dtype] * math.prod(int(d) for d in dims.split(",") if d)
                for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
            )
            found.append(Collective(op, size, computation in branches))
    return found


class Traffic(NamedTuple):
    """Bytes that the kernels of a program move, in its large arrays."""

    kernels: int
    read: int
    written: int


_NO_KERNEL = ("parameter", "constant", "bitcast", "conditional")


def traffic(text: str, elements: int) -> Traffic:
    """Of the main computation, each kernel once, without its branches.

    Kernels with one result each, as XLA:CPU makes them; others are left out.

    Args:
      text: `compiled.as_text()`.
      elements: only arrays of so many elements count.
    """
    main = text[text.index("\nENTRY ") :]
    pattern = r"^ +(?:ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\((.*?)\)"
    bytes_of: dict[str, int] = {}
    kernels = read = written = 0
    for name, dtype, dims, op, operands in re.findall(pattern, main, re.MULTILINE):
        size = math.prod(int(d) for d in dims.split(",") if d)
        bytes_of[name] = size * _BYTES[dtype] if size == elements else 0
        if op in _NO_KERNEL:
            continue
        # A name counts once, however often a kernel is given it.
        given = sum(bytes_of.get(o, 0) for o in set(re.findall(r"[\w.\-]+", operands)))
        kernels += bool(given or bytes_of[name])
        read, written = read + given, written + bytes_of[name]
    return Traffic(kernels, read, written)
