"""What is read of one compiled program."""

import hashlib
import re
import time
from collections.abc import Iterable
from typing import Any

import jax

from experiments.measuring import hlo
from experiments.programs import cases, targets

VERSION = 1  # Of the meaning of a row: raised, all programs are compiled again.


def fingerprint(case: cases.Case, lowered: Any) -> str:
    """Equal where compiling again would give the same row."""
    parts = (
        str(VERSION),
        jax.__version__,
        str(targets.compiler_version(case.platform)),
        str(targets.ENVIRONMENT[case.platform]),
        targets.describe(case.target),
        lowered.as_text(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def compile_timed(lowered: Any) -> tuple[Any, float]:
    """The compiled program, and the seconds it took."""
    start = time.perf_counter()
    compiled = lowered.compile()
    return compiled, round(time.perf_counter() - start, 1)


def read(case: cases.Case, lowered: Any, compiled: Any) -> dict[str, Any]:
    """Cycles, traffic, collectives and memory of a program."""
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    moved = hlo.traffic(text)
    row: dict[str, Any] = {
        "kernels": moved.kernels,
        "read_MB": round(moved.read / 1e6, 1),
        "written_MB": round(moved.written / 1e6, 1),
        "conditionals": hlo.conditionals(text),
        "barriers": lowered.as_text().count("optimization_barrier"),
        "temporary_MB": round(memory.temp_size_in_bytes / 1e6, 1),
        "argument_MB": round(memory.argument_size_in_bytes / 1e6, 1),
        "output_MB": round(memory.output_size_in_bytes / 1e6, 1),
        "aliased_MB": round(memory.alias_size_in_bytes / 1e6, 1),
    }
    if case.platform == "tpu":
        row["cycles"], row["branch_cycles"] = hlo.cycles(text)
    if case.devices > 1:
        row["collectives"] = count(hlo.collectives(text))
    return row


_COUNTS = ("forward", "backward", "gradients", "conditional", "asynchronous",
           "kernels_beside", "cycles_beside")  # fmt: skip


def count(found: Iterable[hlo.Collective]) -> dict[str, int]:
    """How many collectives there are of each kind, and what runs beside them.

    `forward` and `backward` are those of the normalisation that always run,
    `gradients` those that average the gradients of parameters; where the compiler made
    one of several, the first says what it is.
    """
    counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
    for each in found:
        counts["conditional" if each.conditional else kind(each.op_name)] += 1
        counts["asynchronous"] += each.asynchronous
        counts["kernels_beside"] += each.between
        counts["cycles_beside"] += each.cycles_between
    return counts


def kind(op_name: str) -> str:
    """What a collective is for, from where in the traced program it comes from."""
    if "transpose(" in op_name:
        return "backward" if re.search("BatchNorm|Haiku", op_name) else "gradients"
    return "forward" if "jvp(" in op_name else "gradients"


def reason(message: str) -> str:
    """The line of the compiler's message that says why it refuses, not longer."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join((lines or ["no message"])[0].split())[:200]
