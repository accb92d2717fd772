"""Writes the results of studies: JSON, Markdown and figures, each file atomically.

A study writes a JSON with `write_result`. `write_pages` writes the other files from the
JSON alone.
"""

import hashlib
import io
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.framework import provenance

Result = Mapping[str, Any]


def check_folder(path: pathlib.Path) -> None:
    """Creates a folder for results.

    Raises:
      ValueError: if the folder cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"`out` must be a folder that can be written, got {path}: {error}."
        ) from error


def write_result(path: pathlib.Path, study: Any, result: Result) -> None:
    """Writes the JSON of a study, with its provenance.

    Args:
      path: the path of the JSON; `write_pages` gives its other files the same name.
      study: the study with its options.
      result: the other content, with the `device` if another process measured.
    """
    about = provenance.of(study, result.get("device"))
    write_json(path, {"study": study.name, **about, **result})


def write_json(path: pathlib.Path, result: Result) -> None:
    """Writes `result` with sorted keys, so that equal results give equal files."""
    write_text(path, json.dumps(result, sort_keys=True, indent=1) + "\n")


def write_pages(
    path: pathlib.Path,
    table: Callable[[Result], str],
    draw: Callable[[Result], Any],
) -> str:
    """Writes `.md` and `.png` beside the JSON at `path`, from its content.

    Args:
      path: the path of the JSON.
      table: a function that returns the text (Markdown).
      draw: a function that draws the figure, or a mapping of such functions by the
        suffixes that are added to the name of the JSON.

    Returns:
      The text.
    """
    content = path.read_bytes()
    result = json.loads(content)
    text = f"{provenance.line(result)}\n\n{table(result).rstrip()}\n"
    write_text(path.with_suffix(".md"), text)
    drawn = draw(result)
    for suffix, figure in (drawn if isinstance(drawn, dict) else {"": drawn}).items():
        save(path.with_name(f"{path.stem}{suffix}.png"), figure, digest(content))
    return text


def digest(content: bytes) -> str:
    """Returns the digest of a JSON.

    Its figures contain it, so that a stale figure can be detected.
    """
    return hashlib.sha256(content).hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` as UTF-8."""
    write_bytes(path, text.encode())


def plain(values: Any, digits: int = 4) -> Any:
    """Returns numbers in the form of JSON.

    Args:
      values: an array of any shape, or a mapping of them.
      digits: the number of significant digits to keep.

    Returns:
      Nested lists in the same mappings, with None for values that are not finite.
    """
    if isinstance(values, Mapping):
        return {name: plain(value, digits) for name, value in values.items()}
    if np.ndim(values):
        return [plain(value, digits) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    if isinstance(values, float):
        return float(f"{values:.{digits}g}") if math.isfinite(values) else None
    return values


def spread(seeds: np.ndarray, digits: int = 4) -> str:
    """Returns the mean over seeds and half of their range, as text."""
    return f"{seeds.mean():.{digits}f} ± {np.ptp(seeds) / 2:.{digits}f}"


def markdown(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(path: pathlib.Path, figure: Any, source: str) -> None:
    """Writes a figure as PNG and closes it.

    Args:
      path: the path of the PNG.
      figure: a figure of matplotlib.
      source: the text to write into the file as its `Source`.
    """
    buffer = io.BytesIO()
    # The version of matplotlib is left out, so that equal results give equal files.
    metadata = {"Software": None, "Source": source}
    figure.savefig(buffer, format="png", dpi=110, metadata=metadata)
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
