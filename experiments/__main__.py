"""Lists the studies (`python -m experiments`) or runs one of them.

`python -m experiments STUDY` runs a study. Only this study is imported.
"""

import sys

from experiments.framework import discovery


def main(arguments: list[str]) -> None:
    """Runs the command that `arguments` name, or lists all commands."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("Usage: python -m experiments STUDY [--help] [OPTIONS]\n")
        for command in discovery.commands().values():
            print(f"  {command.name:20} {command.summary}")
        return
    name, *options = arguments
    found = discovery.find(name)
    if found is None:
        sys.exit(f"There is no study {name!r}; `python -m experiments` lists them.")
    # Listing the studies needs neither of these.
    import absl.logging
    import tyro

    absl.logging.set_verbosity(absl.logging.ERROR)  # TFDS and orbax print a lot.
    command, implied = found
    given = tyro.cli(
        command.load(),
        prog=f"python -m experiments {name}",
        args=[*implied, *options],
        use_underscores=False,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        given.run()
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
