"""Finds the collectives that a compiled program waits for, from its HLO text.

A program waits for a collective if a matrix product or a convolution depends on its
result, directly or not. It does not wait for a collective that only the new parameters
or the results of the step depend on.
"""

import functools
from typing import NamedTuple

from experiments.compilers import hlo, hlo_text

# Parts of the targets of custom calls to CPU and GPU libraries that multiply matrices.
_LIBRARIES = ("gemm", "matmul", "cublas", "conv", "cudnn")


class Waiting(NamedTuple):
    """Counts of the collectives that always run, and of those in branches."""

    collectives: int
    waited_for: int
    in_a_row: int  # The longest chain in which each waits for the one before.
    conditional: int
    conditional_waited_for: int
    bytes: int  # The size of the results that are always computed, on one device.
    conditional_bytes: int


def waiting(text: str) -> Waiting:
    """Counts the collectives, and those among them that a layer waits for.

    Args:
      text: `compiled.as_text()`.
    """
    program = hlo_text.parse(text)
    graph = _Graph(program)
    branches = program.in_branches()
    # `hlo.collectives` gives them in the same order as `walk`.
    sizes = [each.bytes for each in hlo.collectives(text)]
    places = [
        (name, each.name) for name, each in program.walk() if hlo.is_collective(each.op)
    ]
    rows = [
        (name in branches, graph.is_waited_for(name, each), size)
        for (name, each), size in zip(places, sizes, strict=True)
    ]
    always = [row for row in rows if not row[0]]
    sometimes = [row for row in rows if row[0]]
    return Waiting(
        len(always),
        sum(waits for _, waits, _ in always),
        graph.longest(program.entry),
        len(sometimes),
        sum(waits for _, waits, _ in sometimes),
        sum(size for _, _, size in always),
        sum(size for _, _, size in sometimes),
    )


class _Graph:
    """The users of each instruction, and the callers of each computation."""

    def __init__(self, program: hlo_text.Program):
        self.program = program
        self.users: dict[tuple[str, str], list[str]] = {}
        self.callers: dict[str, list[tuple[str, str]]] = {}
        self.instructions = {(name, each.name): each for name, each in program.walk()}
        for name, each in program.walk():
            if each.op != "parameter":  # The operand of a parameter is a number.
                for operand in each.operands:
                    self.users.setdefault((name, operand), []).append(each.name)
            for called in _computations(each):
                self.callers.setdefault(called, []).append((name, each.name))
        self.multiplies = functools.cache(self._multiplies)
        self.is_waited_for = functools.cache(self._is_waited_for)

    def _multiplies(self, computation: str, name: str) -> bool:
        """Returns True if an instruction has a matrix product or a convolution."""
        each = self.instructions[computation, name]
        if each.op in ("dot", "convolution"):
            return True
        if each.op == "custom-call":
            target = each.attributes.partition("custom_call_target=")[2]
            target = target.partition(",")[0].lower()
            return any(word in target for word in _LIBRARIES)
        return any(
            self.multiplies(called, inner.name)
            for called in _computations(each)
            for inner in self.program.computations.get(called, ())
        )

    def _is_waited_for(self, computation: str, name: str) -> bool:
        """Returns True if an instruction that multiplies depends on this one."""
        seen, left = {name}, [name]
        while left:
            for user in self.users.get((computation, left.pop()), ()):
                if user in seen:
                    continue
                if self.multiplies(computation, user):
                    return True
                seen.add(user)
                left.append(user)
        # The callers of a computation may use its result.
        return any(
            self.is_waited_for(*caller) for caller in self.callers.get(computation, ())
        )

    def longest(self, computation: str) -> int:
        """Returns the most collectives on a path through a computation.

        Branches of conditionals do not count.
        """
        length: dict[str, int] = {}
        for each in self.program.computations.get(computation, ()):
            before = 0
            if each.op != "parameter":
                before = max((length.get(name, 0) for name in each.operands), default=0)
            if hlo.is_collective(each.op):
                own = 1
            else:
                own = max((self.longest(name) for name in each.called), default=0)
            length[each.name] = before + own
        return max(length.values(), default=0)


def _computations(instruction: hlo_text.Instruction) -> list[str]:
    return [*instruction.called, *instruction.branches]
