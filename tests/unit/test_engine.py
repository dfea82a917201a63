"""The engine: batches are split right, ledgers tile, faults stay where they are. The backend computes."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from services.accounting import Stage, Timeline, monotonic_ns
from services.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from services.inference.engine import Engine
from services.messages import Array, Recipe, Tensors, TensorSpec, Work
from services.models.catalogue import ModelSpec

RECIPE = Recipe(2, 2, (0, 0, 0), (1, 1, 1))
SPEC = ModelSpec("sum", "classification", RECIPE, (TensorSpec("logits", "float32", (-1, 3)),), law=(0, 0))
WAIT = 10.0


class SumBackend:
    """Sums each channel: small, and different for every input."""

    platform = "test"
    emulated = False

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.sizes: list[int] = []

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        self.threads.add(threading.get_ident())
        self.sizes.append(len(batch))
        assert batch.flags.c_contiguous
        assert batch.flags.aligned
        if np.isnan(batch).any():
            raise FloatingPointError("nan in the input")
        result = batch.sum(axis=(2, 3))
        timeline.cut(Stage.INFER)
        return {"logits": result}

    def close(self) -> None:
        pass


class HeldBackend(SumBackend):
    """Stands still in each batch until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.finished_ns: list[int] = []
        self.closed = False

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        self.entered.release()
        assert self.open.acquire(timeout=WAIT)
        outputs = super().infer(batch, timeline)
        self.finished_ns.append(timeline.last_ns)
        return outputs

    def close(self) -> None:
        self.closed = True


def work(value: float, id_: str = "1", deadline_ns: int | None = None) -> Work:
    tensor = np.full((1, 3, 2, 2), value, np.float32)
    return Work(id_, "sum", tensor, monotonic_ns() + 10**10 if deadline_ns is None else deadline_ns)


@pytest.mark.parametrize(("max_batch", "instances"), [(1, 1), (8, 1), (4, 2)])
def test_each_gets_its_own_answer_and_a_ledger_that_tiles(max_batch: int, instances: int) -> None:
    engine = Engine(SPEC, SumBackend, max_batch=max_batch, max_delay_s=0.002, instances=instances)
    begin = monotonic_ns()
    futures = [engine.submit(work(i)) for i in range(50)]
    for i, future in enumerate(futures):
        outcome = future.result(WAIT)
        assert outcome.outputs["logits"].tolist() == [[4 * i] * 3]
        # The parts never exceed what really passed, and none is negative: all are on one clock
        assert 0 < sum(t.duration_ns for t in outcome.tiles) <= monotonic_ns() - begin
        assert all(t.duration_ns >= 0 for t in outcome.tiles)
        kinds = [t.stage for t in outcome.tiles]
        assert kinds[0] is Stage.INFERENCE_QUEUE
        assert kinds[-1] is Stage.REPLY_QUEUE
        assert (Stage.BATCH_WAIT in kinds) == (max_batch > 1)
    statistics = engine.statistics()
    assert statistics.success.times == 50
    assert sum(size * infer.times for size, (_, infer, _) in statistics.batches.items()) == 50
    engine.close()


def test_one_thread_owns_the_device_and_callbacks_run_elsewhere() -> None:
    backend = SumBackend()
    engine = Engine(SPEC, lambda: backend)
    ran: list[int] = []
    done = threading.Event()

    def callback(_: object) -> None:
        ran.append(threading.get_ident())
        done.set()

    engine.submit(work(1)).add_done_callback(callback)
    assert done.wait(WAIT)
    assert len(backend.threads) == 1
    assert not backend.threads & set(ran)
    engine.close()


def test_a_backend_that_raises_fails_its_batch_only() -> None:
    engine = Engine(SPEC, SumBackend)
    with pytest.raises(Internal, match="nan in the input"):
        engine.submit(work(float("nan"))).result(WAIT)
    assert engine.submit(work(2)).result(WAIT).outputs["logits"].tolist() == [[8, 8, 8]]
    assert engine.statistics().fail.times == 1
    engine.close()


@pytest.mark.parametrize("tensor", [np.zeros((3, 2, 2), np.float32), np.zeros((1, 3, 2, 2), np.float64)])
def test_a_wrong_tensor_is_the_callers_fault(tensor: Array) -> None:
    engine = Engine(SPEC, SumBackend)
    with pytest.raises(InvalidInput, match=r"takes float32 \[1, 3, 2, 2\]"):
        engine.submit(Work("1", "sum", tensor, monotonic_ns() + 10**10)).result(WAIT)
    engine.close()


def test_an_unaligned_tensor_is_computed_right() -> None:
    # Given a tensor that is a view at an odd address, as the wire hands them out
    data = b"x" + np.arange(12, dtype=np.float32).tobytes()
    tensor = np.frombuffer(memoryview(data)[1:], np.float32).reshape(1, 3, 2, 2)
    engine = Engine(SPEC, SumBackend)
    outcome = engine.submit(Work("1", "sum", tensor, monotonic_ns() + 10**10)).result(WAIT)
    assert outcome.outputs["logits"].tolist() == [[6, 22, 38]]
    engine.close()


def test_a_backend_that_answers_the_wrong_number_of_rows_is_caught() -> None:
    class Short(SumBackend):
        def infer(self, batch: Array, timeline: Timeline) -> Tensors:
            return {"logits": super().infer(batch, timeline)["logits"][:0]}

    engine = Engine(SPEC, Short)
    with pytest.raises(Internal, match="0 rows for a batch of 1"):
        engine.submit(work(1)).result(WAIT)
    engine.close()


def test_a_model_that_cannot_be_loaded_is_said_at_once_and_leaves_no_thread() -> None:
    def load() -> SumBackend:
        raise ConfigurationError("no such file")

    before = set(threading.enumerate())
    with pytest.raises(ConfigurationError, match="no such file"):
        Engine(SPEC, load)
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
    assert set(threading.enumerate()) <= before


# --- the account of a batch ------------------------------------------------------------------------------------------


def test_each_members_tiles_sum_to_its_own_time_in_the_engine() -> None:
    # Given a device that is busy while five more come, one after the other
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend, max_batch=3)
    before: list[int] = []
    after: list[int] = []
    done: dict[int, int] = {}
    futures = []

    def submit(i: int) -> None:
        before.append(monotonic_ns())
        futures.append(engine.submit(work(i)))
        after.append(monotonic_ns())
        futures[i].add_done_callback(lambda _: done.setdefault(i, monotonic_ns()))

    submit(0)
    assert backend.entered.acquire(timeout=WAIT)
    for i in range(1, 6):
        submit(i)
    for _ in range(3):
        backend.open.release()
    outcomes = [future.result(WAIT) for future in futures]
    engine.close()
    assert backend.sizes == [1, 3, 2]
    # Then each ledger spans its own submit to its own reply: no less than the device's end, no more than the callback
    batch_of = [0, 1, 1, 1, 2, 2]
    for i, outcome in enumerate(outcomes):
        total = sum(tile.duration_ns for tile in outcome.tiles)
        assert backend.finished_ns[batch_of[i]] - after[i] <= total <= done[i] - before[i]
        assert all(tile.duration_ns >= 0 for tile in outcome.tiles)
    # And who came first waited longest, by what lies between
    assert [sum(t.duration_ns for t in o.tiles if t.stage is Stage.INFERENCE_QUEUE) for o in outcomes[1:4]] == sorted(
        (sum(t.duration_ns for t in o.tiles if t.stage is Stage.INFERENCE_QUEUE) for o in outcomes[1:4]), reverse=True
    )


def test_who_waits_for_the_replier_waits_in_the_reply_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a reply that keeps the replier busy for a second
    second_ns = 10**9
    passed_ns = [0]
    monkeypatch.setattr("services.inference.engine.monotonic_ns", lambda: monotonic_ns() + passed_ns[-1])
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend)
    first, second = engine.submit(work(1)), engine.submit(work(2))
    first.add_done_callback(lambda _: passed_ns.append(second_ns))
    backend.open.release(2)
    # Then the next one stood in its queue for as long
    tiles = second.result(WAIT).tiles
    assert tiles[-1].stage is Stage.REPLY_QUEUE
    assert tiles[-1].duration_ns >= second_ns
    assert first.result(WAIT).tiles[-1].duration_ns < second_ns
    engine.close()


def test_the_members_of_a_batch_share_its_device_tiles_and_the_devices_account_has_them_once() -> None:
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend, max_batch=3)
    begin = monotonic_ns()
    futures = [engine.submit(work(0))]
    assert backend.entered.acquire(timeout=WAIT)
    futures += [engine.submit(work(i)) for i in range(1, 6)]
    for _ in range(3):
        backend.open.release()
    outcomes = [future.result(WAIT) for future in futures]
    elapsed = monotonic_ns() - begin
    statistics = engine.statistics()
    engine.close()

    def device(index: int) -> list[tuple[Stage, int]]:
        stages = (Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD)
        return [(t.stage, t.duration_ns) for t in outcomes[index].tiles if t.stage in stages]

    # Then the order is assembly, computing, splitting, and each member has the wall time of its batch
    assert [stage for stage, _ in device(0)] == [Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD]
    assert device(1) == device(2) == device(3)
    assert device(4) == device(5) != device(3)
    # And the shares of the members sum to the time that the device was busy, once
    first_of_batch = {1: 0, 3: 1, 2: 4}
    for size, index in first_of_batch.items():
        upload, infer, download = statistics.batches[size]
        assert (upload.times, infer.times, download.times) == (1, 1, 1)
        assert [d.ns for d in (upload, infer, download)] == [ns for _, ns in device(index)]
    busy = sum(d.ns for parts in statistics.batches.values() for d in parts)
    assert 0 < busy <= elapsed
    # As Triton counts: per request, each with the whole batch
    assert statistics.infer.ns == sum(dict(device(i))[Stage.INFER] for i in range(6))
    assert (statistics.success.times, statistics.queue.times, statistics.executions) == (6, 6, 3)
    before = (Stage.INFERENCE_QUEUE, Stage.BATCH_WAIT)
    waited = sum(t.duration_ns for outcome in outcomes for t in outcome.tiles if t.stage in before)
    assert statistics.queue.ns == waited


def test_a_request_is_counted_before_its_reply_and_a_backend_may_cut_what_stages_it_has() -> None:
    class Normalizes(SumBackend):
        def infer(self, batch: Array, timeline: Timeline) -> Tensors:
            timeline.cut(Stage.NORMALIZE)  # on the device
            return super().infer(batch, timeline)

    engine = Engine(SPEC, Normalizes)
    for i in range(1, 50):
        outcome = engine.submit(work(i)).result(WAIT)
        assert engine.statistics().success.times == i
        assert Stage.NORMALIZE in [tile.stage for tile in outcome.tiles]
    engine.close()


# --- faults, deadlines, ends -----------------------------------------------------------------------------------------


def on_thread(engine: Engine, item: Work) -> tuple[type[BaseException] | None, int]:
    """What the Future of `item` fails with, and on which thread its callbacks run."""
    done = threading.Event()
    ran: list[int] = []
    future = engine.submit(item)
    future.add_done_callback(lambda _: (ran.append(threading.get_ident()), done.set()))
    assert done.wait(WAIT)
    error = future.exception(0)
    return None if error is None else type(error), ran[0]


def test_a_batch_that_fails_fails_each_member_and_nobody_else() -> None:
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend, max_batch=3)
    first = engine.submit(work(1))
    assert backend.entered.acquire(timeout=WAIT)
    together = [engine.submit(work(value)) for value in (2, float("nan"), 3)]
    after = engine.submit(work(4))
    for _ in range(3):
        backend.open.release()
    assert first.result(WAIT).outputs["logits"].tolist() == [[4, 4, 4]]
    for future in together:
        with pytest.raises(Internal, match="'sum' failed: FloatingPointError: nan in the input"):
            future.result(WAIT)
    assert after.result(WAIT).outputs["logits"].tolist() == [[16, 16, 16]]
    assert (engine.statistics().success.times, engine.statistics().fail.times) == (2, 3)
    engine.close()


def test_work_whose_time_is_spent_behind_a_slow_batch_costs_the_device_nothing() -> None:
    # Given a device that is busy
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend, max_batch=4)
    slow = engine.submit(work(1))
    assert backend.entered.acquire(timeout=WAIT)
    # When work comes whose time is over before the device is free, beside work that has time
    ran: list[int] = []
    late = engine.submit(work(2, deadline_ns=monotonic_ns()))
    late.add_done_callback(lambda _: ran.append(threading.get_ident()))
    fine = engine.submit(work(3))
    backend.open.release()
    backend.open.release()
    # Then it is told so, on another thread than the device's, and the device never sees it
    with pytest.raises(DeadlineExceeded, match="nothing was computed"):
        late.result(WAIT)
    assert fine.result(WAIT).outputs["logits"].tolist() == [[12, 12, 12]]
    assert slow.result(WAIT).outputs["logits"].tolist() == [[4, 4, 4]]
    assert backend.sizes == [1, 1]
    assert not backend.threads & set(ran)
    assert engine.statistics().fail.times == 1
    engine.close()


def test_a_batch_is_not_held_open_beyond_the_time_of_its_members() -> None:
    # Given an engine that would wait for a second member far longer than the first one has time
    engine = Engine(SPEC, SumBackend, max_batch=3, max_delay_s=1000)
    # Then it gives up the waiting while there is time to compute, whichever member is in a hurry
    assert engine.submit(work(1, deadline_ns=monotonic_ns() + 10**9)).result(WAIT).outputs["logits"][0, 0] == 4
    patient = engine.submit(work(2))
    hurried = engine.submit(work(3, deadline_ns=monotonic_ns() + 10**9))
    assert [f.result(WAIT).outputs["logits"][0, 0] for f in (patient, hurried)] == [8, 12]
    engine.close()


def test_a_full_queue_and_a_wrong_request_fail_at_once_and_are_counted() -> None:
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend, capacity=1)
    held = engine.submit(work(1))
    assert backend.entered.acquire(timeout=WAIT)
    queued = engine.submit(work(2))
    here = threading.get_ident()
    assert on_thread(engine, work(3)) == (Overloaded, here)
    wrong = Work("1", "other", np.zeros((1, 3, 2, 2), np.float32), monotonic_ns() + 10**10)
    assert on_thread(engine, wrong) == (UnknownModel, here)
    assert engine.statistics().fail.times == 2
    backend.open.release()
    backend.open.release()
    assert [f.result(WAIT).outputs["logits"][0, 0] for f in (held, queued)] == [4, 8]
    engine.close()


def test_a_caller_cannot_harm_the_others() -> None:
    # Given a caller that cancels, and one whose callback raises
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend)
    cancelled = engine.submit(work(1))
    raising = engine.submit(work(2))
    raising.add_done_callback(lambda _: 1 // 0)
    assert not cancelled.cancel()
    for _ in range(3):
        backend.open.release()
    # Then everyone has an answer
    assert [f.result(WAIT).outputs["logits"][0, 0] for f in (cancelled, raising, engine.submit(work(3)))] == [4, 8, 12]
    engine.close()


def test_closing_fails_what_is_queued_and_finishes_what_runs() -> None:
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend)
    runs = engine.submit(work(1))
    assert backend.entered.acquire(timeout=WAIT)
    queued = engine.submit(work(2))
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(Unavailable, match="was closed while this was queued"):
        queued.result(WAIT)
    backend.open.release()
    assert runs.result(WAIT).outputs["logits"].tolist() == [[4, 4, 4]]
    closing.join(WAIT)
    assert backend.closed
    # And later work is refused, twice closing is fine
    engine.close()
    assert on_thread(engine, work(3)) == (Unavailable, threading.get_ident())


def test_a_batch_that_outlives_the_closing_is_still_answered() -> None:
    # Given a device that is busy for longer than closing waits
    before = set(threading.enumerate())
    backend = HeldBackend()
    engine = Engine(SPEC, lambda: backend, close_timeout_s=0.0)
    runs = engine.submit(work(1))
    assert backend.entered.acquire(timeout=WAIT)
    engine.close()
    assert not runs.done()
    backend.open.release()
    assert runs.result(WAIT).outputs["logits"].tolist() == [[4, 4, 4]]
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
    assert set(threading.enumerate()) <= before


def test_an_instance_that_cannot_be_loaded_gives_the_others_devices_back() -> None:
    loaded = HeldBackend()
    ready = threading.Event()
    loads = iter([0, 1])
    lock = threading.Lock()

    def load() -> SumBackend:
        with lock:
            second = next(loads) == 1
        if second:
            assert ready.wait(WAIT)
            raise ConfigurationError("no room on the device")
        ready.set()
        return loaded

    with pytest.raises(ConfigurationError, match="no room"):
        Engine(SPEC, load, instances=2)
    assert loaded.closed
