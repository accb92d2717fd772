"""Describes the provenance of a result: the command, the device and the versions."""

import dataclasses
import importlib.metadata
import pathlib
import platform
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def of(study: Any, device: str | None = None) -> dict[str, Any]:
    """Returns the provenance for the JSON of a study.

    Args:
      study: the study with its options.
      device: the device that was measured; the default is the first device of JAX in
        this process.
    """
    return {
        "command": command(study),
        "device": device or device_name(),
        "versions": versions(),
    }


def line(result: Mapping[str, Any]) -> str:
    """Returns the provenance of a result as the first line of a page."""
    parts = [f"Made by `{result['command']}`", *filter(None, [result.get("device")])]
    versions = result.get("versions", {})
    parts += [f"{name} {versions[name]}" for name in sorted(versions)]
    return ", ".join(parts) + "."


def command(study: Any) -> str:
    """Returns the command line of these options, without those at their defaults.

    Folders are left out, because they do not change the numbers.
    """
    return " ".join(["python -m experiments", study.name, *_options(study)])


def _options(config: Any) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = default_of(field)
        if field.name in ("out", "data_dir") or value == default:
            continue
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _options(value)
        elif isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, tuple):
            yield " ".join([f"--{name}", *(shlex.quote(str(each)) for each in value)])
        else:
            yield f"--{name} {shlex.quote(str(value))}"


def default_of(field: dataclasses.Field) -> Any:
    """Returns the default of a field of a dataclass."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def device_name() -> str:
    """Returns the name of the first device of JAX.

    For a CPU it is the name of the processor and the number of cores.
    """
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    if not names:
        return f"{platform.processor() or platform.machine()} CPU"
    return f"{names[0]}, {len(names)} cores"


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that change the numbers."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **installed}
