"""Reads the measures of a compiled program."""

import hashlib
import re
import time
from collections.abc import Iterable
from typing import Any

import jax

from experiments.compilers import cases, hlo, targets

# The version of the meaning of a row. A new one makes all programs compile again.
VERSION = 1


def fingerprint(case: cases.Case, lowered: Any) -> str:
    """Returns a hash that is equal if compiling again would give the same row."""
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
    """Returns the compiled program and the seconds that this took."""
    start = time.perf_counter()
    compiled = lowered.compile()
    return compiled, round(time.perf_counter() - start, 1)


def read(case: cases.Case, lowered: Any, compiled: Any) -> dict[str, Any]:
    """Returns cycles, traffic, collectives and memory of a program."""
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
    """Counts the collectives of each kind, and the work that runs beside them.

    `forward` and `backward` are collectives of the normalisation that always run.
    `gradients` average the gradients of parameters. If the compiler merged several, the
    first one decides the kind.
    """
    counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
    for each in found:
        counts["conditional" if each.conditional else kind(each.op_name)] += 1
        counts["asynchronous"] += each.asynchronous
        counts["kernels_beside"] += each.between
        counts["cycles_beside"] += each.cycles_between
    return counts


def kind(op_name: str) -> str:
    """Returns the kind of a collective from its place in the traced program."""
    if "transpose(" in op_name:
        return "backward" if re.search("BatchNorm|Haiku", op_name) else "gradients"
    return "forward" if "jvp(" in op_name else "gradients"


def reason(message: str) -> str:
    """Returns the first line of a compiler's message, at most 200 characters of it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join((lines or ["no message"])[0].split())[:200]
