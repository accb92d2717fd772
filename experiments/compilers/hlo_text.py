"""Parses the text of a compiled program, `compiled.as_text()`, into instructions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r" ?([\w\-]+)\(")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=([\w.%\-]+)"
)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_NAME = re.compile(r"[\w.\-]+")


class Array(NamedTuple):
    """An array in the result of an instruction."""

    elements: int
    bytes: int  # The size without the padding of a TPU's tiles.
    space: int  # The memory space: 0 is the main memory, 1 the VMEM of a TPU.


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    op: str
    results: tuple[Array, ...]  # More than one if the result is a tuple.
    operands: tuple[str, ...]  # Names in order; for a parameter, its number.
    attributes: str

    @property
    def op_name(self) -> str:
        """The place in the traced program that it comes from, or an empty string."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The cycles that the TPU compiler estimates; 0 without an estimate."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    @property
    def branches(self) -> list[str]:
        """The names of the computations that a conditional chooses from."""
        names = []
        for several, one in _BRANCHES.findall(self.attributes):
            names += _NAME.findall(several or one)
        return names

    @property
    def called(self) -> list[str]:
        """The names of the other computations that it runs."""
        return _CALLED.findall(self.attributes)


class Program(NamedTuple):
    """The computations by name, each with its instructions in scheduled order."""

    computations: dict[str, list[Instruction]]
    entry: str

    def main(self) -> list[Instruction]:
        """Returns the instructions of the entry computation, which always run."""
        return self.computations[self.entry]

    def in_branches(self) -> set[str]:
        """Returns the names of the computations that run only in branches."""
        waiting = [
            name
            for instructions in self.computations.values()
            for instruction in instructions
            for name in instruction.branches
        ]
        found: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in found and name in self.computations:
                found.add(name)
                for instruction in self.computations[name]:
                    waiting += [*instruction.called, *instruction.branches]
        return found

    def conditionals(self) -> list[Instruction]:
        """Returns all conditionals, including those in branches."""
        return [i for _, i in self.walk() if i.op == "conditional"]

    def walk(self) -> Iterator[tuple[str, Instruction]]:
        """Yields every instruction with the name of its computation."""
        for name, instructions in self.computations.items():
            for instruction in instructions:
                yield name, instruction


def parse(text: str) -> Program:
    """Reads a compiled program.

    Args:
      text: `compiled.as_text()`.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            current = computations.setdefault(opened[2], [])
            entry = opened[2] if opened[1] else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(*found.groups())
            if instruction is not None:
                current.append(instruction)
    return Program(computations, entry)


def _instruction(name: str, rest: str) -> Instruction | None:
    end = _closing(rest, " ")
    operation = _OPERATION.match(rest, end)
    if operation is None:
        return None
    opened = operation.end()
    closed = opened + _closing(rest[opened:], ")")
    operands = tuple(_names(rest[opened:closed]))
    results = tuple(_array(*found) for found in _ARRAY.findall(rest[:end]))
    return Instruction(name, operation[1], results, operands, rest[closed:])


def _names(text: str) -> list[str]:
    """Returns the names of operands.

    Some versions write the operands with their types and with comments.
    """
    text = re.sub(r"/\*.*?\*/", "", text)
    parts = _split(text)
    return [names[-1] for part in parts if (names := _NAME.findall(part))]


def _split(text: str) -> list[str]:
    parts, start = [], 0
    while start <= len(text):
        end = start + _closing(text[start:], ",")
        parts.append(text[start:end])
        start = end + 1
    return parts


def _closing(text: str, mark: str) -> int:
    """Returns the index of the first `mark` outside all brackets."""
    depth = 0
    for index, character in enumerate(text):
        if character == mark and depth == 0:
            return index
        depth += (character in "([{") - (character in ")]}")
    return len(text)


def _array(dtype: str, dims: str, layout: str) -> Array:
    elements = math.prod(int(d) for d in dims.split(",") if d)
    space = re.search(r"S\((\d+)\)", layout)
    size = elements * _bytes_of(dtype)
    return Array(elements, math.ceil(size), int(space[1]) if space else 0)


def _bytes_of(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0  # Tokens have no size.
