"""A CUDA device as PyTorch gives it to backends: whether it is there, and a lane that moves batches to it and back.

What has run where: the lane's logic runs in tests on the CPU, with a stand-in for `torch.cuda` whose events have given
times. Nothing here has run on a CUDA device yet; pinned memory, streams and events are PyTorch's documented ones
(https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from services.accounting import Stage, Timeline
from services.cuda_timing import DeviceMarks
from services.errors import ConfigurationError
from services.messages import Array, Tensors


class Gpu(NamedTuple):
    """What a compiled engine depends on. `capability`: "9.0"; `cuda`: the version that this torch was built for."""

    name: str
    capability: str
    cuda: str


def require(device: str) -> None:
    """Raises `ConfigurationError` where `device` ("cuda", "cuda:1") is not there."""
    count = torch.cuda.device_count()
    if (torch.device(device).index or 0) >= count:
        raise ConfigurationError(
            f"device '{device}' was asked for, but torch {torch.__version__} sees {count} CUDA devices; "
            "check the driver (nvidia-smi) and the pod's GPU limit, or use --device cpu"
        )


def describe(device: str) -> Gpu:
    """Of a device that is there."""
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), f"{major}.{minor}", str(torch.version.cuda))


def open_lane(device: str) -> Lane:
    """A lane on `device`, which becomes the calling thread's current one. Raises `ConfigurationError`."""
    require(device)
    index = torch.device(device).index or 0
    torch.cuda.set_device(index)
    return Lane(torch.device("cuda", index), torch.cuda)


def empty_like(tensor: torch.Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    """Memory of that form where `tensor` is."""
    return tensor.new_empty(shape, dtype=_torch_dtype(dtype))


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Lane:
    """One stream, its events, and pinned buffers that are used again. Belongs to the thread that owns the backend.

    `cuda`: `torch.cuda`, or what stands in for it. Memory that is not pinned cannot be copied asynchronously, and
    allocating pinned memory for every batch costs more than the copy.
    """

    def __init__(self, device: torch.device, cuda: Any, *, pin: bool = True) -> None:
        self._device = device
        self._cuda = cuda
        self._pin = pin
        self.stream = cuda.Stream(device=device)
        # A thread that waits for a blocking event sleeps: one that spins takes a CPU from preprocessing.
        self._marks = DeviceMarks(lambda: cuda.Event(enable_timing=True, blocking=True))
        self._pinned: dict[str, torch.Tensor] = {}

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def run(self, batch: Array, compute: Callable[[Any], dict[str, Any]], timeline: Timeline) -> Tensors:
        """`compute` gets `batch` as a tensor on the device, on this lane's stream, and answers tensors there by name.

        Returns them as arrays that are the caller's. Cuts `upload`, `infer` and `download` (`services.cuda_timing`).
        What `compute` raises, this raises, when the device has done what it was given.
        """
        staged = self._buffer("input", batch.shape, _torch_dtype(batch.dtype))
        np.copyto(staged.numpy(), batch)
        try:
            with self._cuda.stream(self.stream):
                self._marks.begin(self.stream)
                tensor = staged.to(self._device, non_blocking=True, copy=True)
                self._marks.mark(Stage.UPLOAD, self.stream)
                results = compute(tensor)
                self._marks.mark(Stage.INFER, self.stream)
                landed = {name: self._fetch(name, value) for name, value in results.items()}
                self._marks.mark(Stage.DOWNLOAD, self.stream)
            self._marks.wait()
        except BaseException:
            self.stream.synchronize()  # or the next batch would be written over one that is still being copied
            raise
        outputs = {name: np.array(value.numpy()) for name, value in landed.items()}
        self._marks.cut(timeline)
        return outputs

    def _fetch(self, name: str, value: torch.Tensor) -> torch.Tensor:
        target = self._buffer(f"output {name}", value.shape, value.dtype)
        return target.copy_(value.contiguous(), non_blocking=True)

    def _buffer(self, name: str, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        """Pinned memory of that form; the same as last time, unless it was too small."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        buffer = self._pinned.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._pinned[name] = torch.empty(size, dtype=torch.uint8, pin_memory=self._pin)
        return buffer[:size].view(dtype).view(tuple(shape))

    def close(self) -> None:
        """Give the memory back."""
        self._pinned.clear()
        self._cuda.empty_cache()
