"""Lists the studies (`python -m experiments`) or runs one of them.

`python -m experiments STUDY` runs a study.
"""

import sys

import absl.logging
import tyro

from experiments import datasets, everything, pages, studies

COMMANDS = studies.STUDIES | {
    "all": everything.Everything,
    "pages": pages.Pages,
    "prepare": datasets.Prepare,
}


def main(arguments: list[str]) -> None:
    """Runs the command that `arguments` name, or lists all commands."""
    if not arguments:
        print("Usage: python -m experiments STUDY [--help] [OPTIONS]\n")
        for name, command in sorted(COMMANDS.items()):
            print(f"  {name:20} {command.__doc__.splitlines()[0]}")
        return
    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS and orbax print a lot.
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="python -m experiments",
        args=arguments,
        use_underscores=False,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        command.run()
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
