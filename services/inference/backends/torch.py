"""PyTorch, on the CPU or a CUDA device.

What has run where: the CPU path is tested, in float32, float16 and bfloat16. On a CUDA device a batch goes through
`cuda.Lane` (a stream of its own, pinned buffers, events); that has run with a stand-in for the device only.
"""

from __future__ import annotations

import textwrap
import threading
from typing import Any

import numpy as np
import torch

from services import cuda
from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.inference.backends.backend import FLOAT32, Placement
from services.messages import Array, Tensors
from services.models import networks
from services.models.catalogue import ModelSpec

_SAID = 300  # characters of torch's message: of weights that don't fit it names each one
_REDUCED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Random weights come from the process's one generator: instances that load at once would take turns on it.
_CONSTRUCTING = threading.Lock()


def load(spec: ModelSpec, placement: Placement) -> TorchBackend:
    """The network of `spec` on the device of `placement`, in evaluation mode. Raises `ConfigurationError`."""
    device = placement.device
    if device != "cpu":
        cuda.require(device)
    elif placement.precision == "tf32":
        raise ConfigurationError("precision 'tf32' is of NVIDIA's GPUs; use another --precision, or --device cuda")
    torch.set_num_threads(placement.threads)
    _allow_tf32(placement.precision == "tf32")
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
    return TorchBackend(network, spec, None if device == "cpu" else cuda.open_lane(device), placement.precision)


def _allow_tf32(allowed: bool) -> None:
    """Of the process. Float32 is float32 unless TF32 was asked for: cuDNN's convolutions take it by themselves."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


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

    def __init__(self, network: Any, spec: ModelSpec, lane: cuda.Lane | None, precision: str = FLOAT32) -> None:
        """`lane`: to the device; None on the CPU. `precision`: float16 and bfloat16 are autocast's, channels last."""
        self._network: Any = network
        self._outputs = spec.outputs
        self._lane = lane
        self._reduced: torch.dtype | None = _REDUCED.get(precision)
        # An exported program is what it was when it was exported, its memory's order included.
        self._channels_last = self._reduced is not None and spec.recipe.layout == "CHW" and spec.exported is None
        if self._channels_last:
            network.to(memory_format=torch.channels_last)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`."""
        if self._network is None:
            raise Internal("the backend is closed")
        try:
            if self._lane is not None:
                outputs: Tensors = self._lane.run(batch, self._compute, timeline)
                return outputs
            # torch has no read-only tensors, and warns of them.
            results = self._compute(torch.from_numpy(batch if batch.flags.writeable else np.array(batch)))
            timeline.cut(Stage.INFER)
            return {name: value.numpy() for name, value in results.items()}
        except Internal:
            raise
        except Exception as error:
            raise Internal(f"torch failed: {type(error).__name__}: {error}") from error

    def _compute(self, tensor: Any) -> dict[str, Any]:
        """By name, in float32 where something was reduced to less."""
        if self._reduced is None:
            return self._name(self._network(tensor))
        if self._channels_last:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        with torch.autocast(tensor.device.type, dtype=self._reduced):
            named = self._name(self._network(tensor))
        return {name: value.float() if value.dtype == self._reduced else value for name, value in named.items()}

    def _name(self, result: Any) -> dict[str, Any]:
        """torchvision answers a tensor, a dict or a tuple; the models file names them in order."""
        if isinstance(result, dict):
            return {output.name: result[output.name] for output in self._outputs if output.name in result}
        values = result if isinstance(result, (tuple, list)) else (result,)
        if len(values) != len(self._outputs):
            raise Internal(
                f"the network has {len(values)} outputs, the models file names {[o.name for o in self._outputs]}"
            )
        return {output.name: value for output, value in zip(self._outputs, values, strict=True)}

    def close(self) -> None:
        """See `Backend.close`."""
        self._network = None
        if self._lane is not None:
            self._lane.close()
            self._lane = None
