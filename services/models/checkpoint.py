"""Reads a state dict that torch saved, without torch. Executes nothing: whatever is no tensor is refused.

The legacy format of `torch.save` (before torch 1.6): three pickles (magic number, protocol version, system), the
object's pickle with storages as persistent ids, a pickled list of storage keys, then for each storage its number of
elements (int64) and its bytes. Source: torch/serialization.py, `_legacy_load`.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.errors import ConfigurationError

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _StorageType(NamedTuple):
    dtype: np.dtype[Any]


class _Tensor(NamedTuple):
    key: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(
    storage: tuple[str, np.dtype[Any]], offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage[0], storage[1], offset, tuple(shape), tuple(stride))


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages and ordered dictionaries; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype[Any]]:
        match pid:
            case ("storage", _StorageType(dtype), str() as key, str(), int(), *_):
                return key, dtype
        raise pickle.UnpicklingError(f"it contains a reference that is no storage: {pid!r}")


def read_state_dict(path: Path) -> dict[str, NDArray[Any]]:
    """Name -> array. Raises `ConfigurationError` for what is no such file, or holds more than tensors."""
    try:
        with path.open("rb") as file:
            if _load(file) != _MAGIC:
                raise pickle.UnpicklingError("its magic number is not torch's")
            _load(file)
            _load(file)
            state = _state(_load(file))
            storages = {key: _storage(file, state, key) for key in _load(file)}
        return {name: _array(tensor, storages) for name, tensor in state.items()}
    except (
        OSError,
        pickle.UnpicklingError,
        EOFError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigurationError(
            f"checkpoint {path} cannot be read: {error or type(error).__name__}; "
            "it must be a state dict as torch.save wrote it before torch 1.6, whole"
        ) from error


def _load(file: IO[bytes]) -> Any:
    return _Unpickler(file).load()


def _state(loaded: Any) -> dict[str, _Tensor]:
    if not isinstance(loaded, dict):
        raise TypeError(f"it holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(value, _Tensor):
            raise TypeError(f"'{name}' is a {type(value).__name__}, not a tensor")
    return loaded


def _storage(file: IO[bytes], state: dict[str, _Tensor], key: str) -> NDArray[Any]:
    dtype = next((tensor.dtype for tensor in state.values() if tensor.key == key), None)
    if dtype is None:
        raise ValueError(f"no tensor uses its storage {key!r}")
    count = int.from_bytes(file.read(8), "little")
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError("it is cut off")
    return np.frombuffer(data, dtype)


def _array(tensor: _Tensor, storages: dict[str, NDArray[Any]]) -> NDArray[Any]:
    storage = storages[tensor.key]
    places = (tensor.offset, *tensor.shape, *tensor.stride)
    if len(tensor.shape) != len(tensor.stride) or not all(isinstance(n, int) and n >= 0 for n in places):
        raise ValueError(f"a tensor has offset {tensor.offset}, shape {tensor.shape} and strides {tensor.stride}")
    reach = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True)) + 1
    if 0 in tensor.shape:
        return np.empty(tensor.shape, storage.dtype)
    if reach > len(storage) or math.prod(tensor.shape) > len(storage):
        raise ValueError(f"a tensor reaches to element {reach} of a storage of {len(storage)}")
    strides = tuple(s * storage.itemsize for s in tensor.stride)
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides).copy()
