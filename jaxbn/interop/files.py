"""Reading and writing of safetensors files, which hold arrays by name and no code.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...     save_safetensors(f"{folder}/bn.safetensors", {"bn.bias": np.arange(2.0)})
  ...     load_safetensors(f"{folder}/bn.safetensors")
  {'bn.bias': array([0., 1.])}

It needs the package `safetensors`, which is imported when a file is read or written.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Path = str | os.PathLike[str]
_SUFFIX = ".safetensors"


def load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by name, bfloat16 ones as `ml_dtypes.bfloat16`.

    Args:
      path: the path of a `.safetensors` file.

    Raises:
      ValueError: if the file is of another kind, if it is damaged or cut short, or if
        it has arrays of a dtype that NumPy cannot hold.
      ImportError: if `safetensors` is not installed.
    """
    path = _checked(path, "read")
    safetensors = _imported()
    found, problems = {}, []
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in sorted(file.keys()):
                try:  # NumPy knows the name "bfloat16" once JAX is imported.
                    found[name] = file.get_tensor(name)
                except (AttributeError, TypeError):  # Other dtypes may be unknown.
                    problems.append(f"{name!r} ({file.get_slice(name).get_dtype()})")
    except safetensors.SafetensorError as error:
        raise ValueError(f"`{path}` cannot be read: {error}") from error
    if problems:
        raise ValueError(
            f"`{path}` has arrays that NumPy cannot hold: {', '.join(problems)}; "
            "convert them to float32 where the file is made."
        )
    return found


def save_safetensors(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes arrays by name; replaces an existing file only when all are written.

    Args:
      path: the path of a `.safetensors` file, which is replaced if it exists.
      weights: arrays by name, as `to_torch` and `to_keras` return them; also bfloat16.

    Raises:
      ValueError: if the path has another ending, or if arrays have a dtype that the
        format does not have.
      ImportError: if `safetensors` is not installed.
    """
    path = _checked(path, "written")
    safetensors = _imported()
    # The memory is written without regard to strides, so it must be in C order.
    arrays = {name: np.asarray(value, order="C") for name, value in weights.items()}
    # The part is in the same folder, as replacing is atomic only within a file system.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        safetensors.numpy.save_file(arrays, part)
        os.replace(part, path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"`weights` cannot be written to {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def as_weights(weights: Mapping[str, Any] | Path) -> Mapping[str, Any]:
    """Returns weights by name; reads them if the path of a file is given.

    Raises:
      ValueError, ImportError: as in `load_safetensors`.
      TypeError: if `weights` is neither a mapping nor a path.
    """
    if isinstance(weights, (str, os.PathLike)):
        return load_safetensors(weights)
    if isinstance(weights, Mapping):
        return weights
    raise TypeError(
        "`weights` must be arrays by name, such as `model.state_dict()`, or the path "
        f"of a {_SUFFIX} file, got {type(weights).__name__}."
    )


def _checked(path: Path, what: str) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix == _SUFFIX:
        return path
    raise ValueError(
        f"Only {_SUFFIX} files are {what}, got {str(path)!r}. Files of PyTorch (.pt, "
        ".pth, .bin, .ckpt) and pickles can run any code when they are read. Where you "
        "trust one, load it with its own package and give the dictionary, or save that "
        "again: `safetensors.torch.save_file(torch.load(old, weights_only=True), new)`."
    )


def _imported() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{_SUFFIX} files need the package safetensors, which is not installed; "
            "`pip install 'safetensors>=0.7'`."
        ) from error
    return safetensors
