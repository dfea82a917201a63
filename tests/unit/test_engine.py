"""The engine: batches are split right, ledgers tile, faults stay where they are. The backend computes."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from services.accounting import Stage, Timeline, monotonic_ns
from services.errors import ConfigurationError, Internal, InvalidInput
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


def work(value: float, id_: str = "1") -> Work:
    return Work(id_, "sum", np.full((1, 3, 2, 2), value, np.float32), monotonic_ns() + 10**10)


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
    assert set(threading.enumerate()) == before
