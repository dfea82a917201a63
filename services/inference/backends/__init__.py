"""What computes: a table from backend name to module. Adding one is one file and one row."""

from __future__ import annotations

import importlib
import re
from typing import Any, Protocol, cast

import numpy as np

from services.accounting import Timeline
from services.errors import ConfigurationError, Internal
from services.inference.backends.backend import Backend, Placement
from services.models.catalogue import ModelSpec

# name -> module with `load(spec, placement)`; imported when first asked for.
TABLE: dict[str, str] = {
    "onnxruntime": "services.inference.backends.onnxruntime",
    "torch": "services.inference.backends.torch",
    "tensorrt": "services.inference.backends.tensorrt",
    "emulated": "services.inference.backends.emulated",
    "replay": "services.inference.backends.replay",
}
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


class _Loader(Protocol):
    def load(self, spec: ModelSpec, placement: Placement) -> Backend: ...


def default_for(spec: ModelSpec) -> str:
    """The backend that reads the model's source, or stands in for it."""
    if spec.acceleration is not None:
        return "replay"
    if spec.law is not None:
        return "emulated"
    return "onnxruntime" if spec.onnx is not None else "torch"


def load(name: str, spec: ModelSpec, device: str, threads: int, max_batch: int = 1, **more: Any) -> Backend:
    """Load `spec` on `device` ("cpu", "cuda", "cuda:1") and warm it up. Raises `ConfigurationError` with the remedy.

    `more`: other fields of `Placement`. A real model runs once with the smallest and once with the largest batch: what
    a device does only the first time (memory, kernels, graphs) is no request's, and a model that is not what the models
    file says is found at start.
    """
    if name not in TABLE:
        raise ConfigurationError(f"unknown backend '{name}'; use one of {', '.join(TABLE)}")
    if _DEVICE.fullmatch(device) is None:
        raise ConfigurationError(f"unknown device '{device}'; use cpu, cuda or cuda:N")
    if spec.acceleration is not None and name != "replay":  # its times are to be divided, whatever takes them
        name, more = "replay", {**more, "real": name}
    placement = Placement(device, threads, max_batch, **more)
    try:
        module = cast(_Loader, importlib.import_module(TABLE[name]))
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"backend '{name}' needs the Python package '{missing.name}'; "
            f"install the extra: pip install 'beyond-inference[{name}]'"
        ) from missing
    except (ImportError, OSError) as broken:
        raise ConfigurationError(
            f"backend '{name}' cannot be used here: {broken}; a library that it needs is missing or of another version"
        ) from broken
    backend = module.load(spec, placement)
    if not backend.emulated:
        try:
            for size in sorted({1, max_batch}):
                _warm_up(backend, spec, size)
        except BaseException:
            backend.close()
            raise
    return backend


def _warm_up(backend: Backend, spec: ModelSpec, size: int) -> None:
    """One batch of zeros. Raises `ConfigurationError` where the model and the models file disagree."""
    recipe = spec.recipe
    batch = np.zeros((size, *recipe.shape), dtype=recipe.dtype)
    try:
        outputs = backend.infer(batch, Timeline("warm-up"))
    except Internal as error:
        dynamic = "; export it with a dynamic batch dimension, or use --max-batch 1" if size > 1 else ""
        raise ConfigurationError(
            f"model '{spec.name}' does not run on {recipe.dtype} {list(batch.shape)}, which its recipe and "
            f"--max-batch {size} give it: {error.message}{dynamic}"
        ) from error
    for output in spec.outputs:
        found = outputs.get(output.name)
        wanted = [size if d == -1 else d for d in output.shape[:1]] + list(output.shape[1:])
        if (
            found is None
            or found.dtype != np.dtype(output.dtype)
            or found.ndim != len(wanted)
            or any(w not in (-1, f) for w, f in zip(wanted, found.shape, strict=True))
        ):
            really = {name: f"{value.dtype} {list(value.shape)}" for name, value in outputs.items()}
            raise ConfigurationError(
                f"model '{spec.name}' answers a batch of {size} with {really}; "
                f"the models file says {output.name} = {output.dtype} {wanted}: correct its outputs"
            )
