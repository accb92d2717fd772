"""Cycles, memory traffic and collectives of a compiled program, from its HLO text."""

from typing import NamedTuple

from experiments.measuring import hlo_text

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Convolutions and products of libraries are custom calls, on a GPU.
_NO_KERNEL = {
    "parameter",
    "constant",
    "bitcast",
    "tuple",
    "get-tuple-element",
    "conditional",
    "custom-call",
    "after-all",
    "partition-id",
    "replica-id",
}
_ASYNC_COPIES = ("copy-done", "slice-done", "dynamic-slice-done")


class Collective(NamedTuple):
    """One collective operation."""

    op: str
    bytes: int  # Of its result, on one device.
    conditional: bool  # In a branch: runs only where the predicate says so.
    op_name: str = ""  # Where in the traced program it comes from.
    asynchronous: bool = False
    between: int = 0  # Kernels from its start to its end, and their cycles.
    cycles_between: int = 0


def collectives(text: str) -> list[Collective]:
    """Those of a compiled program, in the order of the text.

    Args:
      text: `compiled.as_text()`.
    """
    program = hlo_text.parse(text)
    branches = program.in_branches()
    found = []
    for name, instructions in program.computations.items():
        places = {each.name: place for place, each in enumerate(instructions)}
        for place, each in enumerate(instructions):
            if not is_collective(each.op):
                continue
            op = each.op.removesuffix("-start")
            size = sum(array.bytes for array in each.results)
            origin = _origin(each, instructions, places)
            row = Collective(op, size, name in branches, origin)
            around = _while_it_runs(program, name, place, op != each.op)
            if around is not None:
                kernels = [i for i in around if _is_kernel(i)]
                cycles = sum(i.cycles for i in kernels)
                row = row._replace(
                    asynchronous=True, between=len(kernels), cycles_between=cycles
                )
            found.append(row)
    return found


def is_collective(op: str) -> bool:
    """Whether an operation is a collective, or the start of one."""
    return op.removesuffix("-start") in _COLLECTIVES


def _while_it_runs(
    program: hlo_text.Program, computation: str, place: int, started: bool
) -> list[hlo_text.Instruction] | None:
    """What is scheduled between start and end of a collective, if it has both."""
    if not started:  # Perhaps all that a computation does, which is run beside others.
        for name, each in program.walk():
            if each.op == "async-start" and computation in each.called:
                computation = name
                place = program.computations[name].index(each)
                break
        else:
            return None
    instructions = program.computations[computation]
    waiting = {instructions[place].name}
    for end, each in enumerate(instructions[place + 1 :], place + 1):
        if waiting & set(each.operands):
            if each.op.endswith("-done"):
                return instructions[place + 1 : end]
            waiting.add(each.name)  # async-update
    return None


def _origin(
    instruction: hlo_text.Instruction,
    instructions: list[hlo_text.Instruction],
    places: dict[str, int],
) -> str:
    """Its `op_name`, or that of what it is given: merging collectives loses it."""
    level = [instruction]
    for _ in range(4):
        for each in level:
            if each.op_name:
                return each.op_name
        names = [name for each in level for name in each.operands if name in places]
        level = [instructions[places[name]] for name in dict.fromkeys(names)]
    return ""


class Traffic(NamedTuple):
    """Bytes that the kernels of a program move."""

    kernels: int
    read: int
    written: int


def traffic(text: str, elements: int | None = None) -> Traffic:
    """Of the main computation, each kernel once, without its branches.

    A kernel is taken to read all of every array that it is given, but for one of which
    it only slices parts. Arrays in a TPU's VMEM do not count; copies to it and from it
    do, but are no kernels.

    Args:
      text: `compiled.as_text()`.
      elements: if given, only arrays of so many elements count, and only kernels that
        have one.
    """

    def counts(array: hlo_text.Array) -> bool:
        return array.space == 0 and elements in (None, array.elements)

    program = hlo_text.parse(text)
    instructions = program.main()
    arrays = {each.name: each.results for each in instructions}
    given_to = {each.name: each.operands for each in instructions}
    kernels = read = written = 0
    for each in instructions:
        if each.op in _ASYNC_COPIES:
            source = [
                array
                for start in each.operands
                for name in given_to.get(start, ())
                for array in arrays.get(name, ())
            ]
            moved = sum(array.bytes for array in each.results)
            read += moved if any(map(counts, source)) else 0
            written += moved if any(map(counts, each.results)) else 0
        elif _is_kernel(each):
            parts = _only_sliced(program, each)
            into = sum(
                parts.get(name, array.bytes)
                for name in dict.fromkeys(each.operands)
                for array in arrays.get(name, ())
                if counts(array)
            )
            out = sum(array.bytes for array in each.results if counts(array))
            kernels += bool(elements is None or into or out)
            read, written = read + into, written + out
    return Traffic(kernels, read, written)


def _is_kernel(instruction: hlo_text.Instruction) -> bool:
    op = instruction.op
    return (
        op not in _NO_KERNEL
        and op not in _COLLECTIVES
        and not op.endswith(("-start", "-update", "-done"))
    )


def _only_sliced(
    program: hlo_text.Program, kernel: hlo_text.Instruction
) -> dict[str, int]:
    """Operands of a fusion that it only slices, and the bytes of the slices."""
    body = [i for name in kernel.called for i in program.computations.get(name, ())]
    parts = {}
    for parameter in body:
        if parameter.op != "parameter":
            continue
        uses = _uses(body, parameter.name)
        if uses and all(each.op in ("slice", "dynamic-slice") for each in uses):
            operand = kernel.operands[int(parameter.operands[0])]
            parts[operand] = sum(each.results[0].bytes for each in uses)
    return parts


def _uses(body: list[hlo_text.Instruction], name: str) -> list[hlo_text.Instruction]:
    """What is made of an array, seen through bitcasts."""
    found = []
    for each in body:
        if name in each.operands and each.op != "parameter":
            found += _uses(body, each.name) if each.op == "bitcast" else [each]
    return found


class Cycles(NamedTuple):
    """The TPU compiler's own estimate; 0 of other compilers."""

    main: int
    branches: int  # Of all branches of conditionals together.


def cycles(text: str) -> Cycles:
    """Sums the estimates of the main computation, and of the branches.

    Args:
      text: `compiled.as_text()`.
    """
    program = hlo_text.parse(text)
    branches = {name for each in program.conditionals() for name in each.branches}
    return Cycles(
        sum(each.cycles for each in program.main()),
        sum(i.cycles for name in branches for i in program.computations.get(name, ())),
    )


def conditionals(text: str) -> int:
    """How many there are.

    Args:
      text: `compiled.as_text()`.
    """
    return len(hlo_text.parse(text).conditionals())
