"""The words in which a study says whether a claim holds."""

HOLDS, PARTLY, NOT = "holds", "holds partly", "does not hold here"


def of(*parts: bool) -> str:
    """Of the parts of a claim, each of which was found to hold or not."""
    if all(parts):
        return HOLDS
    return PARTLY if any(parts) else NOT
