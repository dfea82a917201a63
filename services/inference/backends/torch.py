"""PyTorch, on the CPU or a CUDA device.

What has run where: the CPU path is tested; the CUDA path (pinned memory, events) has run on no machine of ours yet.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import numpy as np
import torch

from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.messages import Array, Tensors
from services.models.catalogue import ModelSpec

_log = logging.getLogger(__name__)


def load(spec: ModelSpec, device: str, threads: int) -> TorchBackend:
    """The network of `spec` on `device`, in evaluation mode. Raises `ConfigurationError`."""
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigurationError(f"unknown device '{device}'; use cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device '{device}' was asked for, but torch {torch.__version__} sees no CUDA device; "
            "check the driver (nvidia-smi) and the pod's GPU limit, or use --device cpu"
        )
    torch.set_num_threads(threads)
    try:
        network = _network(spec).to(device).eval()
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"model '{spec.name}' cannot be loaded: {type(error).__name__}: {error}") from error
    return TorchBackend(network, spec, torch.device(device))


def _network(spec: ModelSpec) -> Any:
    if spec.exported is not None:
        return _Exported(torch.export.load(str(spec.exported)).module())
    if spec.architecture is None:
        raise ConfigurationError(
            f"model '{spec.name}' has neither `architecture` nor `exported`, one of which backend torch needs"
        )
    constructors = importlib.import_module("torchvision.models")
    torch.manual_seed(spec.seed)
    try:
        network = constructors.get_model(spec.architecture, weights=None, weights_backbone=None)
    except TypeError:  # classifiers have no backbone to speak of
        network = constructors.get_model(spec.architecture, weights=None)
    except ValueError as error:
        raise ConfigurationError(f"model '{spec.name}': torchvision has no '{spec.architecture}': {error}") from None
    if spec.weights is None:
        _log.warning(
            "model '%s' has no weights: a random network from seed %d. FOR TIMING ONLY, its answers mean nothing",
            spec.name,
            spec.seed,
        )
    else:
        network.load_state_dict(torch.load(spec.weights, map_location="cpu", weights_only=True))
    return network


class _Exported(torch.nn.Module):  # type: ignore[misc] # torch may be absent where types are checked
    """An exported program refuses `eval()`; it was exported in the mode that it has."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def eval(self) -> _Exported:
        return self

    def forward(self, batch: Any) -> Any:
        return self.module(batch)


class TorchBackend:
    """One network on one device."""

    platform = "pytorch"
    emulated = False

    def __init__(self, network: Any, spec: ModelSpec, device: torch.device) -> None:
        self._network: Any = network
        self._outputs = [output.name for output in spec.outputs]
        self._device = device
        self._cuda = device.type == "cuda"

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`."""
        if self._network is None:
            raise Internal("the backend is closed")
        # torch has no read-only tensors, and warns of them.
        host = torch.from_numpy(batch if batch.flags.writeable else np.array(batch))
        if self._cuda:
            tensor = host.pin_memory().to(self._device, non_blocking=True)
            torch.cuda.synchronize(self._device)  # or the copy would be charged to inference
            timeline.cut(Stage.UPLOAD)
        else:
            tensor = host
        result = self._network(tensor)
        if self._cuda:
            torch.cuda.synchronize(self._device)
        timeline.cut(Stage.INFER)
        outputs = self._name(result)
        arrays: Tensors = {name: value.cpu().numpy() for name, value in outputs.items()}
        if self._cuda:
            timeline.cut(Stage.DOWNLOAD)
        return arrays

    def _name(self, result: Any) -> dict[str, Any]:
        """torchvision answers a tensor, a dict or a tuple; the models file names them in order."""
        if isinstance(result, dict):
            return {name: result[name] for name in self._outputs}
        values = result if isinstance(result, (tuple, list)) else (result,)
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """See `Backend.close`."""
        self._network = None
        if self._cuda:
            torch.cuda.empty_cache()
