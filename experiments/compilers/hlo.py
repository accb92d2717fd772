"""Reads cycles, memory traffic and collectives from the HLO text of a program."""

from typing import NamedTuple

from experiments.compilers import hlo_text

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Operations that do not count as kernels. On a GPU, convolutions and matrix products of
# libraries are custom calls.
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
    """A collective operation."""

    op: str
    bytes: int  # The size of its result on one device.
    conditional: bool  # True: it is in a branch of a conditional.
    op_name: str = ""  # The place in the traced program that it comes from.
    asynchronous: bool = False
    between: int = 0  # The number of kernels between its start and its end.
    cycles_between: int = 0  # The cycles of these kernels.


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program, in the order of the text.

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
    """Returns True if an operation is a collective, or the start of one."""
    return op.removesuffix("-start") in _COLLECTIVES


def _while_it_runs(
    program: hlo_text.Program, computation: str, place: int, started: bool
) -> list[hlo_text.Instruction] | None:
    """Returns the instructions between start and end of a collective.

    The result is None if the collective is not split into a start and an end.
    """
    if not started:  # It may lie in a computation that an `async-start` calls.
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
    """Returns the `op_name` of an instruction, or else that of one of its operands.

    The compiler drops the `op_name` when it merges collectives.
    """
    level = [instruction]
    for _ in range(4):
        for each in level:
            if each.op_name:
                return each.op_name
        names = [name for each in level for name in each.operands if name in places]
        level = [instructions[places[name]] for name in dict.fromkeys(names)]
    return ""


class Traffic(NamedTuple):
    """The number of kernels of a program, and the bytes that they move."""

    kernels: int
    read: int
    written: int


def traffic(text: str, elements: int | None = None) -> Traffic:
    """Returns the traffic of the main computation, without branches.

    Each kernel counts once. It is taken to read all of each operand, except where it
    only slices parts of one. Arrays in the VMEM of a TPU do not count. Copies to and
    from VMEM count as traffic, but not as kernels.

    Args:
      text: `compiled.as_text()`.
      elements: if given, only arrays with this number of elements count, and only
        kernels that read or write one.
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
    """Returns the bytes of the slices of each operand that a fusion only slices."""
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
    """Returns the instructions that use an array, or a bitcast of it."""
    found = []
    for each in body:
        if name in each.operands and each.op != "parameter":
            found += _uses(body, each.name) if each.op == "bitcast" else [each]
    return found


class Cycles(NamedTuple):
    """The cycles that the TPU compiler estimates; other compilers give 0."""

    main: int
    branches: int  # The sum over all branches of conditionals.


def cycles(text: str) -> Cycles:
    """Sums the estimates of the main computation and those of the branches.

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
    """Returns the number of conditionals, including those in branches.

    Args:
      text: `compiled.as_text()`.
    """
    return len(hlo_text.parse(text).conditionals())
