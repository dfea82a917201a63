"""What computes: a table from backend name to module. Adding one is one file and one row."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from services.errors import ConfigurationError
from services.inference.backends.backend import Backend
from services.models.catalogue import ModelSpec

# name -> module with `load(spec, device, threads)`; imported when first asked for.
TABLE: dict[str, str] = {
    "onnxruntime": "services.inference.backends.onnxruntime",
    "torch": "services.inference.backends.torch",
    "emulated": "services.inference.backends.emulated",
}


class _Loader(Protocol):
    def load(self, spec: ModelSpec, device: str, threads: int) -> Backend: ...


def default_for(spec: ModelSpec) -> str:
    """The backend that reads the model's source."""
    if spec.law is not None:
        return "emulated"
    return "onnxruntime" if spec.onnx is not None else "torch"


def load(name: str, spec: ModelSpec, device: str, threads: int) -> Backend:
    """Load `spec` on `device` ("cpu", "cuda", "cuda:1"). Raises `ConfigurationError` with the remedy."""
    if name not in TABLE:
        raise ConfigurationError(f"unknown backend '{name}'; use one of {', '.join(TABLE)}")
    try:
        module = cast(_Loader, importlib.import_module(TABLE[name]))
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"backend '{name}' needs the Python package '{missing.name}'; "
            f"install the extra: pip install 'beyond-inference[{name}]'"
        ) from missing
    return module.load(spec, device, threads)
