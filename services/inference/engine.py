"""One model on its devices: a bounded queue, a dynamic batcher, one thread per device instance.

Callbacks never run on a device's thread: outcomes go to a replier thread, whose delay is `reply_queue`.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from services.accounting import Fact, Stage, Tile, Timeline, monotonic_ns
from services.batching import Batcher, Entry
from services.errors import Internal, InvalidInput, ServiceError, UnknownModel
from services.inference.backends.backend import Backend
from services.messages import Array, BatchDone, Outcome, Tensors, Work
from services.models.catalogue import ModelSpec
from services.statistics import Counter, Statistics

_log = logging.getLogger(__name__)

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
        close_timeout_s: float = 5.0,
        batched: Callable[[BatchDone], object] | None = None,
    ) -> None:
        """`load` is called once per instance, on the thread that will own it; what it raises, this raises.

        `batched` learns of every batch, on the replier's thread.
        """
        self.spec = spec
        self.instances = instances
        self.max_batch = max_batch
        self.max_delay_s = max_delay_s
        self.platform = ""
        self.emulated = False
        self._expected = (1, *spec.recipe.shape)
        self._dtype = np.dtype(spec.recipe.dtype)
        self._counter = Counter()
        self._owners: set[int] = set()  # the devices' threads
        self._closing = False
        self._batched = batched
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
                close_timeout_s=close_timeout_s,
                fail=self._fail_queued,
            )
        except BaseException:
            self._done.put(None)
            raise

    def submit(self, work: Work) -> Future[Outcome]:
        """Queue `work`. The Future fails with `InvalidInput`, `Overloaded`, `DeadlineExceeded`, `Internal`, ..."""
        timeline = Timeline(WHERE, monotonic_ns())
        error = self._refusal(work)
        if error is None:
            return self._batcher.submit(work, timeline, work.deadline_ns)
        self._counter.failed(monotonic_ns() - timeline.start_ns)
        failed: Future[Outcome] = Future()
        failed.set_exception(error)
        return failed

    def _refusal(self, work: Work) -> ServiceError | None:
        if work.model != self.spec.name:
            return UnknownModel(f"there is no model '{work.model}' here; this is '{self.spec.name}'")
        if work.tensor.shape != self._expected or work.tensor.dtype != self._dtype:
            return InvalidInput(
                f"model '{self.spec.name}' takes {self._dtype.name} {list(self._expected)}, "
                f"not {work.tensor.dtype} {list(work.tensor.shape)}"
            )
        return None

    @property
    def queue(self) -> Batcher[Work, Outcome]:
        """Of work that no instance has taken, and the batches that are made of it."""
        return self._batcher

    def statistics(self) -> Statistics:
        """The counts so far."""
        return self._counter.snapshot()

    def close(self) -> None:
        """Fail what is queued, finish what runs, give the devices back. May be called twice."""
        self._closing = True
        self._batcher.close()
        if self._batcher.stopped():  # else a device is still at work, and the replier stays for its outcomes
            self._replier.join(5)

    def _own(self, backend: Backend) -> None:
        """Called on the thread that owns `backend`."""
        self._owners.add(threading.get_ident())
        self.platform, self.emulated = backend.platform, backend.emulated

    def _disown(self) -> None:
        """Called last on a thread that `_own` was called on: its number may be another thread's soon."""
        self._owners.discard(threading.get_ident())
        if self._closing and not self._owners:
            self._done.put(None)

    def _reply(self) -> None:
        while (complete := self._done.get()) is not None:
            try:
                complete()
            except Exception:  # noqa: BLE001 # whatever it is, the next ones must get their replies
                _log.exception("engine %s: an outcome could not be handed over", self.spec.name)

    def _succeed(self, id_: int, batch: Sequence[Entry[Work, Outcome]], outputs: Tensors, device: Timeline) -> None:
        """Hand each member its slice; called on the device's thread, completes on the replier's. `id_`: the batch's."""
        self._done.put(lambda: self._complete(id_, batch, outputs, device))

    def _complete(self, id_: int, batch: Sequence[Entry[Work, Outcome]], outputs: Tensors, device: Timeline) -> None:
        self._count(batch, device)  # first: who has a reply finds it counted
        for index, entry in enumerate(batch):
            # A view keeps the whole batch's output alive for as long as its reply: short, and cheaper than a copy.
            mine = {name: value[index : index + 1] for name, value in outputs.items()}
            # The batch's wall time is each member's; its CPU time too, so that stalls show. Shares are `_count`'s.
            entry.timeline.tiles.extend(device.tiles)
            entry.timeline.last_ns = device.last_ns
            entry.timeline.cut_at(Stage.REPLY_QUEUE, monotonic_ns())
            entry.future.set_result(Outcome(mine, tuple(entry.timeline.tiles)))
        if self._batched is not None:
            members = tuple(entry.item.headers for entry in batch)
            self._batched(BatchDone(id_, self.spec.name, len(batch), device.start_ns, tuple(device.tiles), members))

    def _fail(self, batch: Sequence[Entry[Work, Outcome]], error: ServiceError) -> None:
        now = monotonic_ns()
        for entry in batch:
            self._counter.failed(now - entry.timeline.start_ns)
            self._done.put(lambda entry=entry: entry.future.set_exception(error))  # type: ignore[misc]

    def _fail_queued(self, entry: Entry[Work, Outcome], error: ServiceError) -> None:
        """Fail what no device has computed: on the running thread, unless it is a device's."""
        if threading.get_ident() in self._owners:
            self._fail((entry,), error)
        else:
            self._counter.failed(monotonic_ns() - entry.timeline.start_ns)
            entry.future.set_exception(error)

    def _count(self, batch: Sequence[Entry[Work, Outcome]], device: Timeline) -> None:
        spent = dict.fromkeys(Stage, 0)
        for tile in device.tiles:
            spent[tile.stage] += tile.duration_ns
        self._counter.succeeded(
            [device.last_ns - entry.timeline.start_ns for entry in batch],
            [device.start_ns - entry.timeline.start_ns for entry in batch],
            spent[Stage.UPLOAD],
            spent[Stage.INFER],
            spent[Stage.DOWNLOAD],
        )


def _name_batch(tiles: list[Tile], size: int, id_: int) -> None:
    """Members of a batch are told which one it was, so that they can be found again."""
    facts = ((Fact.BATCH_SIZE, size), (Fact.BATCH_ID, id_))
    for index, tile in enumerate(tiles):
        if tile.stage is Stage.INFER:
            tiles[index] = tile._replace(facts=facts)


class _Worker:
    """One instance: what runs a batch on the thread that owns the device."""

    def __init__(self, engine: Engine, backend: Backend) -> None:
        self._engine = engine
        self._backend = backend
        engine._own(backend)  # a part of the engine

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
            id_ = random.getrandbits(62)  # no secret: it tells batches apart
            _name_batch(device.tiles, len(batch), id_)
        except ServiceError as error:
            self._engine._fail(batch, error)
        except Exception as error:  # noqa: BLE001 # the batch fails, the engine lives on
            self._engine._fail(
                batch, Internal(f"model '{self._engine.spec.name}' failed: {type(error).__name__}: {error}")
            )
        else:
            self._engine._succeed(id_, batch, outputs, device)

    @staticmethod
    def _assemble(batch: Sequence[Entry[Work, Outcome]]) -> Array:
        if len(batch) == 1:
            # A tensor may be a view of a message at an odd address, which a backend need not stand.
            return np.require(batch[0].item.tensor, requirements=["C", "A"])
        return np.concatenate([entry.item.tensor for entry in batch])

    def close(self) -> None:
        """Called by the batcher on the owning thread."""
        try:
            self._backend.close()
        finally:
            self._engine._disown()
