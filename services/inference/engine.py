"""One model on its devices: a bounded queue, a dynamic batcher, one thread per device instance.

Callbacks never run on a device's thread: outcomes go to a replier thread, whose delay is `reply_queue`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from services.accounting import Stage, Timeline, monotonic_ns
from services.batching import Batcher, Entry
from services.errors import Internal, InvalidInput, ServiceError
from services.inference.backends.backend import Backend
from services.messages import Array, Outcome, Tensors, Work
from services.models.catalogue import ModelSpec
from services.statistics import Counter, Statistics

WHERE = "inference"


class Engine:
    """`submit` is the `Submit` of the design: Work in, Future of Outcome out."""

    def __init__(
        self,
        spec: ModelSpec,
        load: Callable[[], Backend],
        *,
        instances: int = 1,
        max_batch: int = 1,
        max_delay_s: float = 0.0,
        capacity: int = 256,
    ) -> None:
        """`load` is called once per instance, on the thread that will own it; what it raises, this raises."""
        self.spec = spec
        self.instances = instances
        self.max_batch = max_batch
        self.max_delay_s = max_delay_s
        self.platform = ""
        self.emulated = False
        self._expected = (1, *spec.recipe.shape)
        self._dtype = np.dtype(spec.recipe.dtype)
        self._counter = Counter()
        self._done: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._replier = threading.Thread(target=self._reply, name=f"{spec.name}-replier", daemon=True)
        self._replier.start()
        try:
            self._batcher: Batcher[Work, Outcome] = Batcher(
                f"engine {spec.name}",
                lambda _: _Worker(self, load()),
                queue_stage=Stage.INFERENCE_QUEUE,
                workers=instances,
                max_batch=max_batch,
                max_delay_s=max_delay_s,
                capacity=capacity,
            )
        except BaseException:
            self._done.put(None)
            raise

    def submit(self, work: Work) -> Future[Outcome]:
        """Queue `work`. The Future fails with `InvalidInput`, `Overloaded`, `DeadlineExceeded`, `Internal`, ..."""
        timeline = Timeline(WHERE)
        if work.tensor.shape != self._expected or work.tensor.dtype != self._dtype:
            failed: Future[Outcome] = Future()
            failed.set_exception(
                InvalidInput(
                    f"model '{self.spec.name}' takes {self._dtype.name} {list(self._expected)}, "
                    f"not {work.tensor.dtype} {list(work.tensor.shape)}"
                )
            )
            return failed
        return self._batcher.submit(work, timeline, work.deadline_ns)

    def depth(self) -> int:
        """Queued work that no instance has taken."""
        return self._batcher.depth()

    def statistics(self) -> Statistics:
        """The counts so far."""
        return self._counter.snapshot()

    def close(self) -> None:
        """Fail what is queued, finish what runs, give the devices back. May be called twice."""
        self._batcher.close()
        self._done.put(None)
        self._replier.join(5)

    def _describe(self, backend: Backend) -> None:
        self.platform, self.emulated = backend.platform, backend.emulated

    def _reply(self) -> None:
        while (complete := self._done.get()) is not None:
            complete()

    def _succeed(self, batch: Sequence[Entry[Work, Outcome]], outputs: Tensors, device: Timeline) -> None:
        """Hand each member its slice; called on the device's thread, completes on the replier's."""
        for index, entry in enumerate(batch):
            # A view keeps the whole batch's output alive for as long as its reply: short, and cheaper than a copy.
            mine = {name: value[index : index + 1] for name, value in outputs.items()}
            entry.timeline.tiles.extend(device.tiles)
            entry.timeline.last_ns = device.last_ns
            self._done.put(lambda entry=entry, mine=mine: self._complete(entry, mine))  # type: ignore[misc]
        self._count(batch, device)

    @staticmethod
    def _complete(entry: Entry[Work, Outcome], outputs: Tensors) -> None:
        entry.timeline.cut(Stage.REPLY_QUEUE)
        entry.future.set_result(Outcome(outputs, tuple(entry.timeline.tiles)))

    def _fail(self, batch: Sequence[Entry[Work, Outcome]], error: ServiceError) -> None:
        now = monotonic_ns()
        for entry in batch:
            self._counter.failed(now - entry.timeline.start_ns)
            self._done.put(lambda entry=entry: entry.future.set_exception(error))  # type: ignore[misc]

    def _count(self, batch: Sequence[Entry[Work, Outcome]], device: Timeline) -> None:
        spent = dict.fromkeys((Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD), 0)
        for tile in device.tiles:
            spent[tile.stage] += tile.duration_ns
        self._counter.succeeded(
            [device.last_ns - entry.timeline.start_ns for entry in batch],
            [device.start_ns - entry.timeline.start_ns for entry in batch],
            spent[Stage.UPLOAD],
            spent[Stage.INFER],
            spent[Stage.DOWNLOAD],
        )


class _Worker:
    """One instance: what runs a batch on the thread that owns the device."""

    def __init__(self, engine: Engine, backend: Backend) -> None:
        self._engine = engine
        self._backend = backend
        engine._describe(backend)  # a part of the engine

    def __call__(self, batch: Sequence[Entry[Work, Outcome]]) -> None:
        device = Timeline(WHERE)
        if self._engine.max_batch > 1:
            for entry in batch:
                entry.timeline.cut_at(Stage.BATCH_WAIT, device.start_ns)
        else:
            device.start_ns = device.last_ns = batch[0].timeline.last_ns
        try:
            tensor = self._assemble(batch)
            device.cut(Stage.UPLOAD)
            outputs = self._backend.infer(tensor, device)
            device.cut(Stage.DOWNLOAD)
            for name, value in outputs.items():
                if len(value) != len(batch):
                    raise Internal(f"output '{name}' has {len(value)} rows for a batch of {len(batch)}")
        except ServiceError as error:
            self._engine._fail(batch, error)
        except Exception as error:  # noqa: BLE001 # the batch fails, the engine lives on
            self._engine._fail(
                batch, Internal(f"model '{self._engine.spec.name}' failed: {type(error).__name__}: {error}")
            )
        else:
            self._engine._succeed(batch, outputs, device)

    @staticmethod
    def _assemble(batch: Sequence[Entry[Work, Outcome]]) -> Array:
        if len(batch) == 1:
            # A tensor may be a view of a message at an odd address, which a backend need not stand.
            return np.require(batch[0].item.tensor, requirements=["C", "A"])
        return np.concatenate([entry.item.tensor for entry in batch])

    def close(self) -> None:
        """Called by the batcher on the owning thread."""
        self._backend.close()
