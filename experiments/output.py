"""What studies write: JSON, Markdown and figures, each file whole or not at all."""

import io
import json
import os
import pathlib
import tempfile
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def check_folder(path: pathlib.Path) -> None:
    """Makes a folder for results.

    Raises:
      ValueError: if there cannot be one, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(
            f"`out` must be a folder that can be written, got {path}: {error}."
        ) from error


def write_json(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes `result` with sorted keys: equal results give equal files."""
    write_text(path, json.dumps(result, sort_keys=True, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` as UTF-8."""
    _write(path, text.encode())


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(path: pathlib.Path, figure: Any) -> None:
    """As PNG, in one step; closes the figure."""
    buffer = io.BytesIO()
    # No version in the file: equal results give equal files.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    _write(path, buffer.getvalue())


def _write(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
