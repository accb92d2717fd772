"""Files of arrays: what is written is what is read, and pickles are not opened."""

import builtins
import os
import pathlib
import pickle

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxbn import interop
from jaxbn.interop import files

TREE = {"params": {"bn": {"scale": np.ones(3, np.float32)}}}
NAMES = {"bn": "net.bn"}


@pytest.mark.parametrize(
    "dtype",
    [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "uint8",
        "bool",
        "complex64",
    ],
)
def test_what_is_written_is_read(dtype, tmp_path):
    weights = {
        "matrix": np.arange(6).reshape(2, 3).T.astype(dtype),  # Not in C order.
        "every second": np.arange(8).astype(dtype)[::2],
        "scalar": np.ones((), dtype),
        "empty": np.zeros((0, 3), dtype),
    }
    path = tmp_path / "w.safetensors"
    interop.save_safetensors(path, weights)
    for read in (interop.load_safetensors(path), interop.load_safetensors(str(path))):
        assert set(read) == set(weights)
        for name, value in weights.items():
            assert read[name].dtype == np.dtype(dtype)
            np.testing.assert_array_equal(read[name], value)


def test_bfloat16_in_a_file_is_the_number_that_it_is(tmp_path):
    """Bytes of the format itself, from no writer: 1.0, -2.5 and 3.140625."""
    header = b'{"net.bn.weight":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    bits = np.array([0x3F80, 0xC020, 0x4049], "<u2").tobytes()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits)
    made = interop.from_torch(path, TREE, NAMES)["params"]["bn"]["scale"]
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, np.float32([1, -2.5, 3.140625]))


def test_a_path_takes_the_place_of_the_dictionary(tmp_path):
    weights = interop.to_torch(TREE, NAMES) | {"other": jnp.ones(2, jnp.bfloat16)}
    path = tmp_path / "w.safetensors"
    interop.save_safetensors(path, weights)
    assert interop.load_safetensors(path)["other"].dtype == ml_dtypes.bfloat16
    with pytest.raises(ValueError, match="'other' of `weights` is not used"):
        interop.from_torch(str(path), TREE, NAMES)
    del weights["other"]
    interop.save_safetensors(path, weights)
    made = interop.from_torch(path, TREE, NAMES)
    np.testing.assert_array_equal(made["params"]["bn"]["scale"], np.ones(3))
    keras = interop.to_keras(TREE, {"bn": "bn"})
    interop.save_safetensors(path, keras)
    made = interop.from_keras(path, TREE, {"bn": "bn"})
    np.testing.assert_array_equal(made["params"]["bn"]["scale"], np.ones(3))


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    interop.save_safetensors(path, {"a": np.ones(2)})
    before = path.read_bytes()

    def half(arrays, filename, *_):
        pathlib.Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.numpy, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            interop.save_safetensors(path, {"a": np.zeros(2)})
    with pytest.raises(
        ValueError, match=r"`weights` cannot be written to .*complex128"
    ):
        interop.save_safetensors(path, {"a": np.ones(2, complex)})
    assert os.listdir(tmp_path) == ["w.safetensors"]
    assert path.read_bytes() == before


class Trap:
    """Says so if it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.pkl", "pytorch_model.bin", "w"])
def test_pickles_are_refused_unread(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap()))
    for given in (path, str(path)):
        with pytest.raises(ValueError, match=r"Only .safetensors files are read") as e:
            interop.from_torch(given, TREE, NAMES)
        assert "can run any code" in str(e.value)
        assert "torch.load(old, weights_only=True)" in str(e.value)
    with pytest.raises(ValueError, match=r"Only .safetensors files are written"):
        interop.save_safetensors(path, {})
    disguised = tmp_path / "w.safetensors"
    disguised.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"`.*w.safetensors` cannot be read"):
        interop.from_torch(disguised, TREE, NAMES)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match=r"w.safetensors"):
        interop.load_safetensors(path)
    eight = np.ones(2, ml_dtypes.float8_e4m3fn)
    interop.save_safetensors(path, {"a": np.ones(2), "b": eight, "c": eight})
    with pytest.raises(ValueError, match=r"cannot hold: 'b' \(.*\), 'c' \(.*float32"):
        interop.load_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"`.*w.safetensors` cannot be read: .+"):
        interop.load_safetensors(path)


def test_neither_weights_nor_a_path():
    with pytest.raises(TypeError, match=r"`weights` must be .* path .*, got list"):
        files.as_weights([np.ones(2)])


def test_without_the_package(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for call in (
        lambda: interop.load_safetensors(tmp_path / "w.safetensors"),
        lambda: interop.save_safetensors(tmp_path / "w.safetensors", {}),
    ):
        with pytest.raises(ImportError, match=r"pip install 'safetensors"):
            call()
