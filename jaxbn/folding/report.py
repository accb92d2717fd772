"""The report: where each layer was folded, and why the others were not."""

from typing import Literal, NamedTuple

Place = Literal["before", "after", "affine", "left"]

_WORDS = {
    "before": "folded into {}",
    "after": "folded into {}, which follows",
    "affine": "a scale and a bias",
    "left": "left as it is",
}


class FoldedLayer(NamedTuple):
    """The result for one layer."""

    path: str
    place: Place  # The place of the layer that took it; "affine" if none did.
    into: str | None  # The path of the layer that took it.
    reason: str  # Why no layer before or after took it; empty if one did.


class Report(NamedTuple):
    """One row per layer, in the order in which they are computed."""

    layers: tuple[FoldedLayer, ...]

    def __str__(self) -> str:
        """Returns one line per layer."""
        names = [each.path or "(the model)" for each in self.layers]
        width = max(map(len, names), default=0)
        lines = []
        for name, each in zip(names, self.layers, strict=True):
            text = _WORDS[each.place].format(each.into)
            because = f": {each.reason}" if each.reason else ""
            lines.append(f"{name.ljust(width)}  {text}{because}")
        return "\n".join(lines)
