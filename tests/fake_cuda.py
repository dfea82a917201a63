"""A stand-in for `torch.cuda`, and for a GPU: streams and events whose times are known. Needs torch only when used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FakeCuda:
    """`torch.cuda` as far as a lane uses it; everything is done at once, and each event is 0.01 ms after the last."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.events: list[FakeCuda.Event] = []
        self.ms = 0.0
        cuda = self

        class Event:
            def __init__(self, *, enable_timing: bool, blocking: bool) -> None:
                assert enable_timing
                cuda.events.append(self)
                self.ms = -1.0

            def record(self, stream: Any) -> None:
                assert isinstance(stream, Stream)
                assert stream.current, "recorded on a stream that the work does not go to"
                cuda.ms += 0.01
                self.ms = cuda.ms
                cuda.done.append("event")

            def synchronize(self) -> None:
                cuda.done.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return float(end.ms - self.ms)

        class Stream:
            def __init__(self, device: Any) -> None:
                self.current = False
                self.cuda_stream = 77

            def synchronize(self) -> None:
                cuda.done.append("drain")

        self.Event, self.Stream = Event, Stream

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        stream.current = True
        yield
        stream.current = False

    def empty_cache(self) -> None:
        self.done.append("empty")


def lane(cuda: FakeCuda) -> Any:
    """To a device that is the CPU."""
    import torch

    from services.cuda import Lane

    return Lane(torch.device("cpu"), cuda, pin=False)
