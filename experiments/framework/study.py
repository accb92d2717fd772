"""The base class of all studies: their common options, and how they are run."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from experiments.framework import checkpoints, output, provenance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """The base of a study. The list of studies prints the first docstring line.

    A subclass is a frozen dataclass in the `study.py` of its folder. Its fields are its
    options. It sets the class attributes below, and implements `measure` and `check`.
    """

    quick: bool = False
    """Run the small setting, which takes a minute or two and needs no download."""
    data_dir: pathlib.Path | None = None
    """The folder of the prepared data sets. The default is that of TFDS, and for digits
    `runs/data`."""
    out: pathlib.Path = pathlib.Path("runs")
    """The folder for the JSON, the table and the figures."""

    name: ClassVar[str]
    """The name of the command, a literal."""
    former_names: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Earlier names of the command, and the options that each of them stands for."""
    small: ClassVar[Mapping[str, Any]] = {}
    """The options of the small setting."""
    not_in_training: ClassVar[Sequence[str]] = ()
    """Options that do not change the trainings; checkpoints are the same for all."""
    report: ClassVar[Callable[[output.Result], str]]
    """The function that returns the text of the page, given the JSON."""
    draw: ClassVar[Callable[[output.Result], Any]]
    """The function that draws the figure from the JSON, or such functions by suffix."""

    def check(self) -> None:
        """Checks the options before any work.

        Raises:
          ValueError: if an option is wrong; the message says what it must be.
        """

    def measure(self) -> output.Result:
        """Returns the content of the JSON."""
        raise NotImplementedError

    def results(self, known: output.Result) -> Iterator[output.Result]:
        """Yields the content of the JSON, again after each addition.

        Args:
          known: the content of the JSON of an earlier run, empty if there is none.
        """
        del known
        yield self.measure()

    def file(self) -> str:
        """Returns the name of the JSON without its suffix."""
        return self.name

    def run(self) -> None:
        """Measures, writes the JSON and its pages, and prints their text.

        Ctrl-C during the measurement ends the program with one line.

        Raises:
          ValueError: if an option is wrong, or nothing can be written into the folder.
        """
        config = self.settled()
        config.check()
        output.check_folder(self.out)
        path = self.out / f"{config.file()}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        text = ""
        with interruptible():
            for result in config.results(known):
                output.write_result(path, self, result)
                text = self.write_pages(path)
        config.checkpoints().clear()
        print(text)

    def settled(self) -> Any:
        """Returns the options that are run: with `quick`, those of the small setting.

        Options that differ from their defaults are kept.
        """
        if not self.quick:
            return self
        untouched = {
            field.name: self.small[field.name]
            for field in dataclasses.fields(self)
            if field.name in self.small
            and getattr(self, field.name) == provenance.default_of(field)
        }
        return dataclasses.replace(self, **untouched)

    def identity(self) -> dict[str, Any]:
        """Returns the options that decide the numbers, as JSON holds them.

        These are all but the folders.
        """
        fields = dataclasses.asdict(self)
        for name in ("data_dir", "out"):
            del fields[name]
        return json.loads(json.dumps(fields, default=str))

    def checkpoints(self) -> checkpoints.Folder:
        """Returns the place of the checkpoints of these options."""
        identity = self.identity()
        for name in self.not_in_training:
            del identity[name]
        return checkpoints.Folder.of_study(self.out, self.file(), identity)

    @classmethod
    def write_pages(cls, path: pathlib.Path) -> str:
        """Writes the pages beside the JSON at `path` and returns their text."""
        return output.write_pages(path, cls.report, cls.draw)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ends the program with one line on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("Stopped. Run the same command again to resume.")
