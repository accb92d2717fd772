"""The words in which a study says whether a claim holds."""

from collections.abc import Mapping, Sequence

from experiments import output

HOLDS, PARTLY, NOT = "holds", "holds partly", "does not hold here"


def of(*parts: bool) -> str:
    """Of the parts of a claim, each of which was found to hold or not."""
    if all(parts):
        return HOLDS
    return PARTLY if any(parts) else NOT


def table(claims: Mapping[str, Sequence[bool]]) -> str:
    """Claims and whether their parts were found to hold, as Markdown."""
    rows = [[claim, f"**{of(*parts)}**"] for claim, parts in claims.items()]
    return "Verdicts:\n\n" + output.markdown(["claim", "verdict"], rows)


def expected(found: Mapping[str, bool], remark: str = "") -> str:
    """What was expected and whether it was found, as Markdown with the verdict.

    Args:
      found: by what was expected.
      remark: sentences after the verdict.
    """
    rows = [[words, "yes" if held else "no"] for words, held in found.items()]
    line = " ".join(filter(None, [f"Verdict: {of(*found.values())}.", remark]))
    return f"{line}\n\n" + output.markdown(["expected", "found"], rows)
