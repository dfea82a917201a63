"""The walk through the preprocess service: rounds, ties, deadlines, and whose error is told."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from services import wire
from services.accounting import UNKNOWN_CPU, Stage, Tile, Timeline, monotonic_ns
from services.batching import Batcher
from services.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    Overloaded,
    ServiceError,
    Unavailable,
    UndecodableImage,
)
from services.link import Link
from services.messages import Answer, Array, Finished, Image, Outcome, Recipe, Submit, Tensors, TensorSpec, Work
from services.pipeline import Encoded, Pipeline, Prepared, Stuff, _slowest, preprocessing_stage
from services.preprocess.server import Door
from services.tasks.task import Task
from services.transports.transport import Delivery, Response

MS = 1_000_000
WAIT = 10.0


class Numbers:
    """A preprocessor of "images" that are numbers in text: `7` is one, `x` is none, `wait` waits."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.waiting = threading.Semaphore(0)  # as often as a worker has begun to wait

    def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
        text = bytes(data)
        if text == b"wait":
            self.waiting.release()
            assert self.go.wait(WAIT)
            text = b"0"
        if not text.isdigit():
            raise UndecodableImage(f"{text!r} is no image")
        timeline.cut(Stage.DECODE)
        return Image(np.full((1, 1, 3), int(text), np.uint8), 1, 1)

    def to_host(self, image: Image, timeline: Timeline) -> Image:
        return image

    def prepare(self, image: Image, recipe: Recipe, timeline: Timeline) -> Array:
        timeline.cut(Stage.NORMALIZE)
        return image.pixels.reshape(1, 3, 1, 1).astype(np.float32)


class Identity(Task):
    """A task that answers the number."""

    name, model, ragged, needs_pixels = "identity", "model", False, False
    recipe = Recipe(1, 1, (0, 0, 0), (1, 1, 1))
    outputs = (TensorSpec("number", "float32", (-1,)),)

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        return Answer({"number": outputs["y"][0]})


class Engine:
    """Computes at once, or when it is told to; each of its ledgers is as long as `durations` has it."""

    def __init__(self, durations: Sequence[int] = (5 * MS,), answers: Callable[[Work], object] | None = None) -> None:
        self.works: list[Work] = []
        self._durations = durations
        self._answers = answers

    def submit(self, work: Work) -> Future[Outcome]:
        duration = self._durations[len(self.works) % len(self._durations)]
        self.works.append(work)
        future: Future[Outcome] = Future()
        answer = None if self._answers is None else self._answers(work)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer is not Ellipsis:  # which never comes
            tile = Tile(Stage.INFER, duration, UNKNOWN_CPU, f"engine-{len(self.works) - 1}")
            future.set_result(Outcome({"y": work.tensor[:, 0, 0, 0]}, (tile,)))
        return future


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def stage(numbers: Numbers) -> Iterator[Batcher[Stuff, Prepared]]:
    stage = preprocessing_stage(numbers, instances=2, max_batch=1, max_delay_s=0, capacity=8)
    yield stage
    numbers.go.set()
    stage.close()


Run = Callable[..., Tensors]


@pytest.fixture
def run(stage: Batcher[Stuff, Prepared]) -> Run:
    """Runs a request of these images."""

    def run(
        submit: Submit,
        *images: bytes,
        timeline: Timeline | None = None,
        left_ns: int = 60_000 * MS,
        pause: Callable[[float], None] | None = None,
    ) -> Tensors:
        """`pause`: a patient request's, which does what it likes meanwhile; None: one that does not wait."""
        task = Identity()
        links = {task.model: Link(submit, None, lambda: None)}
        pipeline = Pipeline({task.name: task}, links, stage, pause or (lambda _: None))
        deadline_ns, into = monotonic_ns() + left_ns, timeline or Timeline("preprocess")
        return pipeline.run(task, images, "7", {}, deadline_ns, into, patient=pause is not None)

    return run


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_images(run: Run) -> None:
    engine = Engine()
    assert run(engine.submit, b"3", b"1", b"2")["number"].tolist() == [3, 1, 2]
    assert [work.id for work in engine.works] == ["7", "7/1", "7/2"]


def test_the_ledger_of_one_image_is_its_own_walk(run: Run) -> None:
    timeline = Timeline("preprocess")
    run(Engine((0,)).submit, b"3", timeline=timeline)
    assert [tile.stage for tile in timeline.tiles] == [
        Stage.PREPROCESS_QUEUE,
        Stage.DECODE,
        Stage.NORMALIZE,
        Stage.DISPATCH,
        Stage.INFER,
        Stage.DISPATCH,
        Stage.INTERPRET,
    ]
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns


@pytest.mark.parametrize(
    ("durations", "last"),
    [((0, 0, 10**12), 2), ((0, 10**12, 0), 1), ((10**12, 0, 0), 0)],
)
def test_a_round_is_its_last_finisher_and_the_time_in_line_before_it(
    run: Run, durations: tuple[int, ...], last: int
) -> None:
    timeline = Timeline("preprocess")
    run(Engine(durations).submit, b"1", b"2", b"3", timeline=timeline)
    assert [t.where for t in timeline.tiles if t.stage is Stage.INFER] == [f"engine-{last}"]
    assert [t.stage for t in timeline.tiles].count(Stage.SEND_QUEUE) == (1 if last else 0)
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns


def test_who_was_submitted_later_and_took_as_long_finished_last(run: Run) -> None:
    # Given siblings that take exactly as long as each other, submitted one after the other
    timeline = Timeline("preprocess")
    clock = iter(range(10))

    def submit(work: Work) -> Future[Outcome]:
        begin = monotonic_ns()
        while monotonic_ns() == begin:  # the next has a later instant, whatever the clock's grain
            pass
        future: Future[Outcome] = Future()
        tile = Tile(Stage.INFER, MS, UNKNOWN_CPU, f"engine-{next(clock)}")
        future.set_result(Outcome({"y": work.tensor[:, 0, 0, 0]}, (tile,)))
        return future

    run(submit, b"1", b"2", b"3", timeline=timeline)
    assert [t.where for t in timeline.tiles if t.stage is Stage.INFER] == ["engine-2"]


def test_ties_go_to_the_lowest_index() -> None:
    timelines = [Timeline("preprocess", 0, clock=lambda: 0) for _ in range(4)]
    for timeline, last in zip(timelines, (5, 9, 9, 1), strict=True):
        timeline.last_ns = last
    assert _slowest(timelines) is timelines[1]


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_deadline_that_passes_during_preprocessing_says_so(run: Run, numbers: Numbers) -> None:
    engine = Engine()
    with pytest.raises(DeadlineExceeded, match="during preprocessing"):
        run(engine.submit, b"wait", left_ns=300 * MS)
    assert engine.works == []


def test_a_deadline_that_has_passed_costs_no_decoding(run: Run, numbers: Numbers) -> None:
    with pytest.raises(DeadlineExceeded):
        run(Engine().submit, b"wait", left_ns=-1)
    # The stage drops it: it is free for the next at once
    assert run(Engine().submit, b"4")["number"].tolist() == [4]
    assert not numbers.waiting.acquire(blocking=False)


def test_a_deadline_that_passes_during_inference_says_so(run: Run) -> None:
    with pytest.raises(DeadlineExceeded, match="during inference"):
        run(Engine(answers=lambda work: ...).submit, b"4", left_ns=500 * MS)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_the_first_image_that_is_wrong_is_the_one_that_is_told(run: Run, numbers: Numbers) -> None:
    # Given a first wrong image that is only found out after a later one
    numbers.go.set()
    engine = Engine()
    with pytest.raises(UndecodableImage, match="b'first'"):
        run(engine.submit, b"wait", b"first", b"2", b"second")
    assert engine.works == []


def test_the_first_work_that_fails_is_the_one_that_is_told(run: Run) -> None:
    errors: dict[str, ServiceError] = {"7/1": Overloaded("the second"), "7/2": Internal("the third")}
    with pytest.raises(Overloaded, match="the second"):
        run(Engine(answers=lambda work: errors.get(work.id)).submit, b"1", b"2", b"3")


# --- who waits -------------------------------------------------------------------------------------------------------


class Refusing(Engine):
    """Refuses the works of these ids so many times, with that error. `durations`: of some ids, else 0."""

    def __init__(
        self,
        times: dict[str, int],
        error: ServiceError,
        durations: dict[str, int] | None = None,
        answers: dict[str, ServiceError] | None = None,
    ) -> None:
        super().__init__((0,), self._refused)
        self._times = times
        self._error = error
        self._of = durations or {}
        self._others = answers or {}

    def submit(self, work: Work) -> Future[Outcome]:
        self._durations = (self._of.get(work.id, 0),)
        return super().submit(work)

    def _refused(self, work: Work) -> object:
        left = self._times.get(work.id, 0)
        self._times[work.id] = left - 1
        return self._error if left > 0 else self._others.get(work.id)


@pytest.mark.parametrize("again", ["7", "7/1", "7/2"])
def test_who_is_patient_asks_again_for_what_was_refused_and_for_that_alone(run: Run, again: str) -> None:
    # Given an engine that refuses one of three works four times, and of which that one takes longest
    engine = Refusing({again: 4}, Overloaded("the queue is full"), {again: 10**12})
    pauses: list[float] = []
    timeline = Timeline("preprocess")
    # When a request that is patient has them
    numbers = run(engine.submit, b"3", b"1", b"2", timeline=timeline, pause=pauses.append)["number"].tolist()
    # Then they are answered in their order, and the one was asked five times, at intervals that become longer
    assert numbers == [3, 1, 2]
    assert [work.id for work in engine.works] == ["7", "7/1", "7/2", *[again] * 4]
    assert pauses == [0.05, 0.1, 0.2, 0.4]
    # And the time until then is that of tries that failed
    assert [tile.stage for tile in timeline.tiles if tile.stage in (Stage.RETRY, Stage.SEND_QUEUE)] == [Stage.RETRY]
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns


def test_the_time_until_the_last_try_is_the_tries(run: Run) -> None:
    # Given a pause that takes its time
    timeline = Timeline("preprocess")
    engine = Refusing({"7": 1}, Overloaded("the queue is full"))
    run(engine.submit, b"3", timeline=timeline, pause=lambda _: time.sleep(0.03))
    [retry] = [tile for tile in timeline.tiles if tile.stage is Stage.RETRY]
    assert retry.duration_ns >= 30 * MS


def test_what_is_refused_is_asked_again_while_its_siblings_go_on(run: Run) -> None:
    # Given a first work that ends when the second one, refused at first, has been answered
    slow: Future[Outcome] = Future()

    def submit(work: Work) -> Future[Outcome]:
        works.append(work.id)
        future: Future[Outcome] = Future()
        outcome = Outcome({"y": work.tensor[:, 0, 0, 0]}, (Tile(Stage.INFER, 0, UNKNOWN_CPU, "engine"),))
        if work.id == "7":
            return slow
        if works.count("7/1") == 1:
            future.set_exception(Overloaded("the queue is full"))
        else:
            future.set_result(outcome)
            slow.set_result(Outcome({"y": np.array([3], np.float32)}, outcome.tiles))
        return future

    works: list[str] = []
    # Then neither waits for the other
    assert run(submit, b"3", b"1", pause=lambda _: None)["number"].tolist() == [3, 1]
    assert works == ["7", "7/1", "7/1"]


def test_who_is_patient_is_told_at_once_what_would_fail_again(run: Run) -> None:
    # Given a second work that fails for good, while the first one is refused
    engine = Refusing({"7": 10**9}, Overloaded("the queue is full"), answers={"7/1": InvalidInput("no image")})
    with pytest.raises(InvalidInput, match="no image"):
        run(engine.submit, b"3", b"1", pause=lambda _: None)
    assert len(engine.works) == 2


def test_who_is_not_patient_is_told_at_once(run: Run) -> None:
    engine = Refusing({"7": 1}, Overloaded("the queue is full"))
    with pytest.raises(Overloaded):
        run(engine.submit, b"3")
    assert len(engine.works) == 1


@pytest.mark.parametrize("error", [Internal("a fault"), InvalidInput("no image"), Unavailable("nobody is there")])
def test_what_would_fail_again_is_not_asked_again(run: Run, error: ServiceError) -> None:
    engine = Refusing({"7": 1}, error)
    with pytest.raises(type(error)):
        run(engine.submit, b"3", pause=lambda _: None)
    assert len(engine.works) == 1


def test_patience_ends_before_the_deadline_with_what_was_refused(run: Run) -> None:
    # Given an engine that has never room
    engine = Refusing({"7": 10**9}, Overloaded("the queue is full"))
    with pytest.raises(Overloaded, match="the queue is full"):
        run(engine.submit, b"3", left_ns=1000 * MS, pause=time.sleep)
    assert 2 <= len(engine.works) <= 4


def test_who_is_patient_waits_for_room_in_the_decoding_pool_too(
    run: Run, numbers: Numbers, stage: Batcher[Stuff, Prepared]
) -> None:
    # Given a pool that is full, of works that wait
    deadline_ns = monotonic_ns() + 60_000 * MS
    for _ in range(2):
        stage.submit(Encoded(b"wait", Identity.recipe), Timeline("preprocess"), deadline_ns)
        assert numbers.waiting.acquire(timeout=WAIT)
    others = [stage.submit(Encoded(b"1", Identity.recipe), Timeline("t"), deadline_ns) for _ in range(8)]
    timeline = Timeline("preprocess")

    def pause(_: float) -> None:
        numbers.go.set()
        for other in others:
            other.result(WAIT)

    # When it has room only after a pause
    assert run(Engine((0,)).submit, b"3", timeline=timeline, pause=pause)["number"].tolist() == [3]
    # Then that was waiting for the pool
    assert [tile.stage for tile in timeline.tiles][:2] == [Stage.RETRY, Stage.PREPROCESS_QUEUE]
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns


def test_no_image_is_an_error_that_says_so(run: Run) -> None:
    with pytest.raises(InvalidInput, match="holds no image"):
        run(Engine().submit)


def test_more_images_than_the_stage_holds_are_refused(
    run: Run, numbers: Numbers, stage: Batcher[Stuff, Prepared]
) -> None:
    # Given a stage with its two workers busy, and as many images as it holds behind them
    for _ in range(2):
        stage.submit(Encoded(b"wait", Identity.recipe), Timeline("preprocess"), monotonic_ns() + 60_000 * MS)
        assert numbers.waiting.acquire(timeout=WAIT)
    for _ in range(8):
        stage.submit(Encoded(b"1", Identity.recipe), Timeline("preprocess"), monotonic_ns() + 60_000 * MS)
    with pytest.raises(Overloaded, match="queue of preprocessing is full"):
        run(Engine().submit, b"1")


def test_a_decoder_learns_how_many_pixels_will_be_used() -> None:
    class Notes(Numbers):
        def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
            asked.append(shorter)
            return super().decode(data, timeline)

    asked: list[int] = []
    stage = preprocessing_stage(Notes(), instances=1, max_batch=1, max_delay_s=0, capacity=4)
    recipe = Recipe(224, 256, (0, 0, 0), (1, 1, 1))
    stage.submit(Encoded(b"7", recipe), Timeline("t"), monotonic_ns() + 10**10).result(WAIT)
    stage.close()
    assert asked == [256]


@pytest.mark.parametrize("max_batch", [1, 2])
def test_decoding_has_cpu_time_alone_and_in_a_batch(numbers: Numbers, max_batch: int) -> None:
    stage = preprocessing_stage(numbers, instances=1, max_batch=max_batch, max_delay_s=0, capacity=4)
    item = Encoded(b"7", Recipe(1, 1, (0, 0, 0), (1, 1, 1)))
    tiles = stage.submit(item, Timeline("t", monotonic_ns()), monotonic_ns() + 10**10).result(WAIT).timeline.tiles
    stage.close()
    known = {tile.stage: tile.cpu_ns != UNKNOWN_CPU for tile in tiles}
    assert (known[Stage.PREPROCESS_QUEUE], known[Stage.DECODE], known[Stage.NORMALIZE]) == (False, True, True)


@pytest.mark.parametrize("keep", [True, False])
def test_pixels_are_let_go_where_a_task_does_not_look_at_them_again(
    stage: Batcher[Stuff, Prepared], keep: bool
) -> None:
    """Ten images of 25 megapixels in one request would be 750 MB until the last of them is inferred."""
    prepared = stage.submit(
        Encoded(b"7", Identity.recipe, keep), Timeline("preprocess"), monotonic_ns() + 60_000 * MS
    ).result(WAIT)
    assert (prepared.image.pixels.size > 0) == keep
    assert prepared.image.width > 0
    assert prepared.tensors[0][0, 0, 0, 0] == 7


def test_a_request_that_failed_is_gone_with_its_answer(numbers: Numbers) -> None:
    stage = preprocessing_stage(numbers, instances=1, max_batch=1, max_delay_s=0, capacity=8)
    task = Identity()
    pipeline = Pipeline({task.name: task}, {task.model: Link(Engine().submit, None, lambda: None)}, stage)
    told: list[str | None] = []
    door = Door(
        pipeline, admission_limit=1, default_timeout_s=WAIT, answered=lambda request: told.append(request.error)
    )

    def ask(name: str, data: bytes) -> Future[Response]:
        image = np.empty(1, dtype=object)
        image[0] = data
        now = monotonic_ns()
        return door(Delivery(wire.encode_request(name, "7", {"image": image}), {}, now, now, now))

    gc.disable()  # large messages must not wait for it
    try:
        for name, data in ((task.name, b"x"), ("another", b"7")):
            # When a request has failed
            error = weakref.ref(ask(name, data).exception(0) or AssertionError())
            # and the worker has turned to another one
            ask(task.name, b"7").result(0)
            # Then nothing holds it
            assert error() is None
    finally:
        gc.enable()
        stage.close()
    assert told[0] == UndecodableImage.kind


@pytest.mark.parametrize(("name", "error"), [("identity", None), ("another", "unknown_model")])
def test_spans_are_chosen_and_then_books_are_kept_when_the_answer_is_there(
    stage: Batcher[Stuff, Prepared], name: str, error: str | None
) -> None:
    # Given a door, and who learns of its requests
    task = Identity()
    pipeline = Pipeline({task.name: task}, {task.model: Link(Engine().submit, None, lambda: None)}, stage)
    told: list[object] = []

    def served(request: Finished) -> str:
        told.append(("served", request.error))
        return "trace"

    door = Door(
        pipeline,
        admission_limit=1,
        default_timeout_s=WAIT,
        served=served,
        answered=lambda request: told.append(("answered", request.error, request.trace_id)),
    )
    later: list[Callable[[], None]] = []
    now = monotonic_ns()
    payload = wire.encode_request(name, "7", {"image": np.array([b"7"], dtype=object)})
    # When a request is answered, or fails
    assert door(Delivery(payload, {}, now, now, now, after=later.append)).done()
    # Then nobody hears of it before that
    assert told == []
    (tell,) = later
    tell()
    assert told == [("served", error), ("answered", error, "trace")]


def test_reading_a_request_at_the_door_has_cpu_time(stage: Batcher[Stuff, Prepared]) -> None:
    task = Identity()
    pipeline = Pipeline({task.name: task}, {task.model: Link(Engine().submit, None, lambda: None)}, stage)
    image = np.array([b"7"], dtype=object)
    now = monotonic_ns()
    payload = wire.encode_request(task.name, "7", {"image": image})
    answer = Door(pipeline, admission_limit=1, default_timeout_s=WAIT)(Delivery(payload, {}, now, now, now))
    tiles = wire.decode_response(answer.result(0).payload).tiles
    known = {tile.stage: tile.cpu_ns != UNKNOWN_CPU for tile in tiles if tile.where == "preprocess"}
    assert (known[Stage.DESERIALIZE], known[Stage.INTERPRET], known[Stage.SERIALIZE]) == (True, True, True)


@pytest.mark.parametrize(("granted", "default"), [(0.5, 2 * WAIT), (None, 0.5)])
def test_a_request_has_the_time_that_its_caller_grants_else_the_doors_own(
    numbers: Numbers, stage: Batcher[Stuff, Prepared], granted: float | None, default: float
) -> None:
    # Given a door with room for one request, whose image takes longer than there is time
    task = Identity()
    pipeline = Pipeline({task.name: task}, {task.model: Link(Engine().submit, None, lambda: None)}, stage)
    door = Door(pipeline, admission_limit=1, default_timeout_s=default)
    image = np.empty(1, dtype=object)

    def ask(data: bytes) -> Future[Response]:
        image[0] = data
        now = monotonic_ns()
        payload = wire.encode_request(task.name, "7", {"image": image})
        return door(Delivery(payload, {}, now, now, now, timeout=granted))

    begin = monotonic_ns()
    with pytest.raises(DeadlineExceeded, match="during preprocessing"):
        ask(b"wait").result(0)
    # Then it is given up in time, and its place is free
    assert monotonic_ns() - begin < WAIT * 1e9 / 2
    assert wire.decode_response(ask(b"7").result(0).payload).outputs["number"].tolist() == [7.0]
