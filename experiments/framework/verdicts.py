"""Puts into words whether the claims of a study hold."""

from collections.abc import Mapping, Sequence

from experiments.framework import output

HOLDS, PARTLY, NOT = "holds", "holds partly", "does not hold here"


def of(*parts: bool) -> str:
    """Returns the verdict on a claim in words; each part is True if it holds."""
    if all(parts):
        return HOLDS
    return PARTLY if any(parts) else NOT


def table(claims: Mapping[str, Sequence[bool]]) -> str:
    """Returns claims and their verdicts as Markdown."""
    rows = [[claim, f"**{of(*parts)}**"] for claim, parts in claims.items()]
    return "Verdicts:\n\n" + output.markdown(["claim", "verdict"], rows)


def expected(found: Mapping[str, bool], remark: str = "") -> str:
    """Returns the verdict, and a table of expected statements, as Markdown.

    Args:
      found: the expected statements; each is True if it holds.
      remark: sentences after the verdict.
    """
    rows = [[words, "yes" if held else "no"] for words, held in found.items()]
    line = " ".join(filter(None, [f"Verdict: {of(*found.values())}.", remark]))
    return f"{line}\n\n" + output.markdown(["expected", "found"], rows)
