"""Load from outside, in the background: photographs, a few in flight, until it is told to stop."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from loadgen.samples import photographs
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import monotonic_ns

# What a caller waits for one answer: long enough for a record of a killed consumer to be given to another.
DEADLINE_S = 30.0
PAUSE_S = 0.1


class Load:
    """As a context; `exchanges` are whole when it has ended."""

    def __init__(self, door: str, in_flight: int = 4) -> None:
        """`door`: host:port."""
        self.exchanges: list[Exchange] = []
        self._target = OipTarget(door, "classification", DEADLINE_S)
        self._photos = [image_tensor(sample.data) for sample in photographs()]
        self._ids = itertools.count()
        self._stop = threading.Event()
        self._workers = [threading.Thread(target=self._work, name=f"load-{i}") for i in range(in_flight)]

    def _work(self) -> None:
        while not self._stop.is_set():
            number = next(self._ids)
            photo = self._photos[number % len(self._photos)]
            exchange = self._target.send(photo, f"load-{number}", monotonic_ns()).result(DEADLINE_S + 10)
            self.exchanges.append(exchange)
            if exchange.error:  # who is refused at once asks again, and leaves what has to start some of the machine
                self._stop.wait(PAUSE_S)

    def wait_answers(self, count: int, limit_s: float = 60) -> None:
        """Until so many more have been answered."""
        wanted, deadline = len(self.exchanges) + count, time.monotonic() + limit_s
        while len(self.exchanges) < wanted:
            assert time.monotonic() < deadline, f"only {len(self.exchanges)} of {wanted} answers within {limit_s:.0f} s"
            time.sleep(0.05)

    def wait_well(self, count: int, limit_s: float = 60) -> None:
        """Until so many more have been answered in a row, each of them well."""
        begun, deadline = len(self.exchanges), time.monotonic() + limit_s
        while len(self.exchanges) < begun + count or any(exchange.error for exchange in self.exchanges[-count:]):
            said = failures(self.exchanges[-count:])[-1:]
            assert time.monotonic() < deadline, f"no {count} good answers in a row within {limit_s:.0f} s: {said}"
            time.sleep(0.05)

    def __enter__(self) -> Load:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join(DEADLINE_S + 15)
        self._target.close()


def failures(exchanges: Sequence[Exchange]) -> list[str]:
    """What was not answered, and why."""
    return [f"{e.id} after {e.total_ns / 1e9:.1f} s: {e.error}: {e.message}" for e in exchanges if e.error]
