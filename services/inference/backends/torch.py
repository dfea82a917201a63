"""PyTorch, on the CPU or a CUDA device.

What has run where: the CPU path is tested; the CUDA path (pinned memory, events) has run on no machine of ours yet.
"""

from __future__ import annotations

import textwrap
import threading
from typing import Any

import numpy as np
import torch

from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.messages import Array, Tensors
from services.models import networks
from services.models.catalogue import ModelSpec

_SAID = 300  # characters of torch's message: of weights that don't fit it names each one
# Random weights come from the process's one generator: instances that load at once would take turns on it.
_CONSTRUCTING = threading.Lock()


def load(spec: ModelSpec, device: str, threads: int) -> TorchBackend:
    """The network of `spec` on `device`, in evaluation mode. Raises `ConfigurationError`."""
    if device != "cpu" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device '{device}' was asked for, but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
            "devices; check the driver (nvidia-smi) and the pod's GPU limit, or use --device cpu"
        )
    torch.set_num_threads(threads)
    try:
        with _CONSTRUCTING:
            network = _network(spec).to(device).eval()
    except ConfigurationError:
        raise
    except Exception as error:
        source = spec.exported or spec.weights or spec.architecture
        raise ConfigurationError(
            f"model '{spec.name}': {source} cannot be loaded on {device}: {type(error).__name__}: "
            f"{textwrap.shorten(str(error), _SAID, placeholder=' ...')}; is it whole, and is it this network's?"
        ) from error
    return TorchBackend(network, spec, torch.device(device))


def _network(spec: ModelSpec) -> Any:
    for file in (spec.exported, spec.weights):
        if file is not None and not file.is_file():
            raise ConfigurationError(f"model '{spec.name}': {file} is not there; correct its path in the models file")
    if spec.exported is not None:
        return _Exported(torch.export.load(str(spec.exported)).module())
    if spec.architecture is None:
        raise ConfigurationError(
            f"model '{spec.name}' has neither `architecture` nor `exported`, one of which backend torch needs; "
            "give it one in the models file, or choose another --backend"
        )
    return networks.build(spec.architecture, spec.recipe.size, weights=spec.weights, seed=spec.seed, name=spec.name)


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
            timeline.cut(Stage.UPLOAD, on_device=True)
        else:
            tensor = host
        try:
            result = self._network(tensor)
            if self._cuda:
                torch.cuda.synchronize(self._device)
            timeline.cut(Stage.INFER, on_device=self._cuda)
            arrays: Tensors = {name: value.cpu().numpy() for name, value in self._name(result).items()}
        except Internal:
            raise
        except Exception as error:
            raise Internal(f"torch failed: {type(error).__name__}: {error}") from error
        if self._cuda:
            timeline.cut(Stage.DOWNLOAD, on_device=True)
        return arrays

    def _name(self, result: Any) -> dict[str, Any]:
        """torchvision answers a tensor, a dict or a tuple; the models file names them in order."""
        if isinstance(result, dict):
            return {name: result[name] for name in self._outputs if name in result}
        values = result if isinstance(result, (tuple, list)) else (result,)
        if len(values) != len(self._outputs):
            raise Internal(f"the network has {len(values)} outputs, the models file names {self._outputs}")
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """See `Backend.close`."""
        self._network = None
        if self._cuda:
            torch.cuda.empty_cache()
