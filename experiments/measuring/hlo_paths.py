"""Which collectives a compiled program waits for: its graph, read from its HLO text.

A collective is waited for if a product of matrices or a convolution depends on its
result, however indirectly. What only the new parameters or the results of a step depend
on is not: nothing of this step stands behind it.
"""

import functools
from typing import NamedTuple

from experiments.measuring import hlo, hlo_text

# Targets of custom calls that multiply: libraries of CPUs and GPUs.
_LIBRARIES = ("gemm", "matmul", "cublas", "conv", "cudnn")


class Waiting(NamedTuple):
    """Of the collectives that always run, and of those in branches."""

    collectives: int
    waited_for: int
    in_a_row: int  # The longest chain, each waiting for the one before.
    conditional: int
    conditional_waited_for: int
    bytes: int  # Of the results of those that always run, on one device.
    conditional_bytes: int


def waiting(text: str) -> Waiting:
    """How many collectives there are, and for how many of them a layer waits.

    Args:
      text: `compiled.as_text()`.
    """
    program = hlo_text.parse(text)
    graph = _Graph(program)
    branches = program.in_branches()
    # In the order in which `walk` meets them.
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
    """Who uses what, within each computation and from one to those that call it."""

    def __init__(self, program: hlo_text.Program):
        self.program = program
        self.users: dict[tuple[str, str], list[str]] = {}
        self.callers: dict[str, list[tuple[str, str]]] = {}
        self.instructions = {(name, each.name): each for name, each in program.walk()}
        for name, each in program.walk():
            if each.op != "parameter":  # Whose operand is a number.
                for operand in each.operands:
                    self.users.setdefault((name, operand), []).append(each.name)
            for called in _computations(each):
                self.callers.setdefault(called, []).append((name, each.name))
        self.multiplies = functools.cache(self._multiplies)
        self.is_waited_for = functools.cache(self._is_waited_for)

    def _multiplies(self, computation: str, name: str) -> bool:
        """Whether an instruction holds a product of matrices or a convolution."""
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
        """Whether something that multiplies depends on an instruction."""
        seen, left = {name}, [name]
        while left:
            for user in self.users.get((computation, left.pop()), ()):
                if user in seen:
                    continue
                if self.multiplies(computation, user):
                    return True
                seen.add(user)
                left.append(user)
        # What a computation makes may be used by those that call it.
        return any(
            self.is_waited_for(*caller) for caller in self.callers.get(computation, ())
        )

    def longest(self, computation: str) -> int:
        """Collectives on the longest path through a computation without branches."""
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
