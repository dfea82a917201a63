"""A CUDA device as PyTorch gives it: whether it is there, and a lane that moves arrays to it and back, and times that.

What has run where: the lane's logic runs in tests on the CPU, with a stand-in for `torch.cuda` whose events have given
times. Nothing here has run on a CUDA device yet; pinned memory, streams and events are PyTorch's documented ones
(https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def require(device: str, instead: str = "--device cpu") -> None:
    """Raises `ConfigurationError` where `device` ("cuda", "cuda:1") is not there. `instead`: what can be used then."""
    count = torch.cuda.device_count()
    if (torch.device(device).index or 0) >= count:
        raise ConfigurationError(
            f"device '{device}' was asked for, but torch {torch.__version__} sees {count} CUDA devices; "
            f"check the driver (nvidia-smi) and the pod's GPU limit, or use {instead}"
        )


def describe(device: str) -> Gpu:
    """Of a device that is there."""
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), f"{major}.{minor}", str(torch.version.cuda))


def open_lane(device: str) -> Lane:
    """A lane on `device`, which is there, and becomes the calling thread's current one."""
    index = torch.device(device).index or 0
    torch.cuda.set_device(index)
    return Lane(torch.device("cuda", index), torch.cuda)


def empty_like(tensor: torch.Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    """Memory of that form where `tensor` is."""
    return tensor.new_empty(shape, dtype=_torch_dtype(dtype))


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Lane:
    """One stream, its events, and pinned buffers that are used again. Belongs to one thread.

    `cuda`: `torch.cuda`, or what stands in for it. Memory that is not pinned cannot be copied asynchronously, and
    allocating pinned memory every time costs more than the copy.
    """

    def __init__(self, device: torch.device, cuda: Any, *, pin: bool = True) -> None:
        self.device = device
        self._cuda = cuda
        self._pin = pin
        self.stream = cuda.Stream(device=device)
        # A thread that waits for a blocking event sleeps: one that spins takes a CPU from preprocessing.
        self._marks = DeviceMarks(lambda: cuda.Event(enable_timing=True, blocking=True))
        self._pinned: dict[str, torch.Tensor] = {}

    def run(self, batch: Array, compute: Callable[[Any], dict[str, Any]], timeline: Timeline) -> Tensors:
        """`compute` gets `batch` as a tensor on the device, on this lane's stream, and answers tensors there by name.

        Returns them as arrays that are the caller's. Cuts `upload`, `infer` and `download` (`services.cuda_timing`).
        What `compute` raises, this raises, when the device has done what it was given.
        """
        staged = self.stage("input", batch)
        with self.work():
            tensor = self.upload(staged)
            self.mark(Stage.UPLOAD)
            results = compute(tensor)
            self.mark(Stage.INFER)
            landed = {name: self.download(f"output {name}", value) for name, value in results.items()}
            self.mark(Stage.DOWNLOAD)
        outputs = {name: np.array(value.numpy()) for name, value in landed.items()}
        self.cut(timeline)
        return outputs

    def stage(self, name: str, array: Array) -> torch.Tensor:
        """A copy of `array` in pinned memory, good until the next of that name."""
        staged = self._buffer(name, array.shape, _torch_dtype(array.dtype))
        np.copyto(staged.numpy(), array)
        return staged

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is done inside goes to this lane's stream, and begins here; at the end of it the device has done it."""
        try:
            with torch.inference_mode(), self._cuda.stream(self.stream):
                self._marks.begin(self.stream)
                yield
            self._marks.wait()
        except BaseException:
            self.stream.synchronize()  # or the next one would write over a buffer that is still being copied
            raise

    def upload(self, staged: torch.Tensor) -> torch.Tensor:
        """To the device."""
        return staged.to(self.device, non_blocking=True, copy=True)

    def download(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """From the device into pinned memory; there when the work is over, good until the next of that name."""
        target = self._buffer(name, value.shape, value.dtype)
        return target.copy_(value.contiguous(), non_blocking=True)

    def mark(self, stage: Stage) -> None:
        """What was given to the device since the last mark is `stage`."""
        self._marks.mark(stage, self.stream)

    def cut(self, timeline: Timeline) -> None:
        """The marked stages, when the work is over."""
        self._marks.cut(timeline)

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
