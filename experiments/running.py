"""What `run` of a study does once its options are settled and checked."""

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

    Ctrl-C in between ends the program with one line.

    Args:
      study: as `python -m experiments` lists it.
      given: the dataclass of its options, as they were given; its `out` is the folder.
      measure: gives what the JSON holds.
      write: makes the pages of a JSON, and returns their text.
      file: name of the JSON without suffix; default: that of the study.

    Raises:
      ValueError: if nothing can be written into the folder.
    """
    output.check_folder(given.out)
    with options.interruptible():
        result = measure()
    path = given.out / f"{file or study}.json"
    output.write_result(path, study, given, result)
    print(write(path))
