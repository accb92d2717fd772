"""Runs a study once its options are checked."""

import pathlib
from collections.abc import Callable
from typing import Any

from experiments import options, output


def run(
    study: str,
    given: Any,
    measure: Callable[[], output.Result],
    write: Callable[[pathlib.Path], str],
    file: str | None = None,
) -> None:
    """Measures, writes the JSON, makes its pages and prints their text.

    Ctrl-C during the measurement ends the program with one line.

    Args:
      study: the name of the study, as `python -m experiments` lists it.
      given: the dataclass of its options, as they were given; its `out` is the folder.
      measure: a function that returns the content of the JSON.
      write: a function that writes the pages of a JSON and returns their text.
      file: the name of the JSON without suffix; the default is that of the study.

    Raises:
      ValueError: if nothing can be written into the folder.
    """
    output.check_folder(given.out)
    with options.interruptible():
        result = measure()
    path = given.out / f"{file or study}.json"
    output.write_result(path, study, given, result)
    print(write(path))
