"""A second round: whatever the fan-out, answers are where they belong and the ledger adds up."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.accounting import UNKNOWN_CPU, Stage, Tile, Timeline, added_up, monotonic_ns, total_ns
from services.errors import DeadlineExceeded, Overloaded
from services.inference.engine import Engine
from services.link import Link
from services.messages import Answer, Array, BatchDone, Image, Outcome, Recipe, Submit, Tensors, TensorSpec, Work
from services.models.catalogue import ModelSpec
from services.pipeline import Pipeline, preprocessing_stage
from services.tasks.task import FollowUp, Task

MS = 1_000_000
WAIT = 20.0
RECIPE = Recipe(1, 1, (0, 0, 0), (1, 1, 1))


class Numbers:
    """A preprocessor of "images" that are numbers in text; a tensor is the number of its image."""

    def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
        timeline.cut(Stage.DECODE)
        return Image(np.full((1, 1, 3), int(bytes(data)), np.uint8), 1, 1)

    def to_host(self, image: Image, timeline: Timeline) -> Image:
        return image

    def prepare(self, image: Image, recipe: Recipe, timeline: Timeline) -> Array:
        timeline.cut(Stage.RESIZE)
        timeline.cut(Stage.NORMALIZE)
        return image.pixels.reshape(1, 3, 1, 1).astype(np.float32)


class Part(Task):
    """Answers the number of a part."""

    name, model, recipe, ragged, needs_pixels = "part", "parts", RECIPE, False, False
    outputs = (TensorSpec("number", "float32", (-1,)),)

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        assert float(image.pixels.flat[0]) == float(outputs["y"][0])  # the answer is about this part
        return Answer({"number": outputs["y"][0]})


class Whole(Task):
    """Of an image `n`, asks about its parts (see `parts_of`) and answers their numbers; about 99 it asks nothing."""

    name, model, recipe, ragged, needs_pixels = "whole", "wholes", RECIPE, True, True
    asks = ("part",)
    outputs = (TensorSpec("parts", "float32", (-1, -1)),)

    def interpret(self, outputs: Tensors, image: Image) -> Answer:
        return Answer({"parts": np.array([-1], np.float32)})

    def follow_up(self, image: Image, answer: Answer) -> FollowUp | None:
        n = int(image.pixels.flat[0])
        if n == 99:
            return None

        def conclude(answers: Sequence[Answer], outputs: tuple[TensorSpec, ...]) -> Answer:
            assert outputs == Part.outputs
            return Answer({"parts": np.array([float(one.tensors["number"]) for one in answers], np.float32)})

        return FollowUp(
            "part", tuple(Image(np.full((1, 1, 3), part, np.uint8), 1, 1) for part in parts_of(n)), conclude
        )


def parts_of(n: int) -> list[int]:
    """n mod 64 parts; those of two images differ."""
    return [(n * 3 + i) % 250 for i in range(n % 64)]


class Model:
    """Answers at once; its i-th ledger is `durations[i]` long."""

    def __init__(self, durations: Sequence[int] = (0,)) -> None:
        self.works: list[Work] = []
        self._durations = durations

    def submit(self, work: Work) -> Future[Outcome]:
        tile = Tile(Stage.INFER, self._durations[len(self.works) % len(self._durations)], UNKNOWN_CPU, work.id)
        self.works.append(work)
        future: Future[Outcome] = Future()
        future.set_result(Outcome({"y": work.tensor[:, 0, 0, 0]}, (tile,)))
        return future


def ask(
    *images: int,
    wholes: Submit | None = None,
    parts: Submit | None = None,
    timeline: Timeline | None = None,
    instances: int = 2,
    capacity: int = 8,
    left_s: float = 60.0,
    patient: bool = False,
) -> Tensors:
    stage = preprocessing_stage(Numbers(), instances=instances, max_batch=1, max_delay_s=0, capacity=capacity)
    pipeline = Pipeline(
        {"whole": Whole(), "part": Part()},
        {
            "wholes": Link(wholes or Model().submit, None, lambda: None),
            "parts": Link(parts or Model().submit, None, lambda: None),
        },
        stage,
        lambda _: None,
    )
    try:
        return pipeline.run(
            Whole(),
            [str(n).encode() for n in images],
            "7",
            {"traceparent": b"t"},
            monotonic_ns() + int(left_s * 1e9),
            timeline or Timeline("preprocess"),
            patient=patient,
        )
    finally:
        stage.close()


def test_who_is_patient_waits_for_the_second_network_too() -> None:
    # Given one that refuses every work once
    refused: set[str] = set()
    model = Model()

    def submit(work: Work) -> Future[Outcome]:
        if work.id in refused:
            return model.submit(work)
        refused.add(work.id)
        future: Future[Outcome] = Future()
        future.set_exception(Overloaded("the queue is full"))
        return future

    timeline = Timeline("preprocess")
    with pytest.raises(Overloaded):
        ask(3, parts=submit)
    refused.clear()
    assert ask(3, parts=submit, timeline=timeline, patient=True)
    assert len(refused) == 3
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns
    assert [tile.stage for tile in timeline.tiles].count(Stage.RETRY) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.lists(st.sampled_from([0, 1, 1000, 10**9, 10**12]), min_size=1, max_size=8))
def test_whatever_the_fan_out_answers_are_in_order_and_the_ledger_adds_up(n: int, durations: list[int]) -> None:
    # Given an image with n parts, about which a model answers in any time
    timeline = Timeline("preprocess")
    wholes, parts = Model(), Model(durations)
    answer = ask(n, wholes=wholes.submit, parts=parts.submit, timeline=timeline)
    # Then every part has its answer, in order
    assert answer["parts"].tolist() == [parts_of(n)]
    assert [work.id for work in parts.works] == [f"7/crop-{i}" for i in range(n)]
    assert all(work.headers == {"traceparent": b"t"} and work.model == "parts" for work in parts.works)
    # and the parts of the ledger are its whole, as integers, with one ledger of each round
    assert total_ns(timeline.tiles) == timeline.total_ns == timeline.last_ns - timeline.start_ns
    inferred = [tile.where for tile in timeline.tiles if tile.stage is Stage.INFER]
    assert inferred[0] == "7"
    assert len(inferred) == (2 if n else 1)
    # which is that of the last finisher
    used = [durations[i % len(durations)] for i in range(n)]
    if n and max(used) >= 10**9:
        assert used[int(inferred[1].removeprefix("7/crop-"))] == max(used)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([[0, 64, 0], [1, 65], [3, 67, 3, 67], [99, 99], [17], [81, 17]]))
def test_several_images_are_asked_about_in_one_round(images: list[int]) -> None:
    timeline = Timeline("preprocess")
    parts = Model()
    answer = ask(*images, parts=parts.submit, timeline=timeline)
    assert answer["parts"].tolist() == [[-1.0] if n == 99 else parts_of(n) for n in images]
    assert total_ns(timeline.tiles) == timeline.total_ns
    assert [work.id for work in parts.works] == [
        f"7{f'/{image}' if image else ''}/crop-{part}"
        for image, n in enumerate(images)
        for part in range(0 if n == 99 else n % 64)
    ]


def test_the_ledger_of_a_second_round_is_short_whatever_the_fan_out() -> None:
    def stages(n: int) -> list[Stage]:
        timeline = Timeline("preprocess")
        ask(n, timeline=timeline)
        return [tile.stage for tile in timeline.tiles if tile.stage is not Stage.SEND_QUEUE]

    first = [Stage.PREPROCESS_QUEUE, Stage.DECODE, Stage.RESIZE, Stage.NORMALIZE, Stage.DISPATCH]
    first += [Stage.INFER, Stage.DISPATCH, Stage.INTERPRET]
    second = [Stage.PREPROCESS_QUEUE, Stage.RESIZE, Stage.NORMALIZE, Stage.DISPATCH]
    second += [Stage.INFER, Stage.DISPATCH, Stage.INTERPRET]
    assert stages(1) == stages(63) == first + second
    assert stages(0) == [*first, Stage.INTERPRET]  # how many there are, and that there is nothing to be asked


def test_what_is_refused_in_the_second_round_is_the_requests_error() -> None:
    def full(work: Work) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_exception(Overloaded("no room for parts"))
        return future

    with pytest.raises(Overloaded, match="no room for parts"):
        ask(3, parts=full)


def test_a_deadline_that_passes_in_the_second_round_says_so() -> None:
    with pytest.raises(DeadlineExceeded, match="during inference"):
        ask(3, parts=lambda work: Future(), left_s=0.3)


def test_who_looks_at_an_image_again_gets_all_of_its_pixels() -> None:
    class Notes(Numbers):
        def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
            asked.append(shorter)
            return super().decode(data, timeline)

    from services.pipeline import Encoded

    asked: list[int] = []
    stage = preprocessing_stage(Notes(), instances=1, max_batch=1, max_delay_s=0, capacity=4)
    for keep in (True, False):
        item = Encoded(b"7", Recipe(224, 256, (0, 0, 0), (1, 1, 1)), keep)
        stage.submit(item, Timeline("t"), monotonic_ns() + 10**10).result(WAIT)
    stage.close()
    assert asked == [0, 256]


def test_a_probe_takes_each_link_once() -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    def probe(work: Work) -> Future[Outcome]:
        asked.append((work.model, work.tensor.shape))
        future: Future[Outcome] = Future()
        future.set_result(Outcome({}, (Tile(Stage.TRANSIT, 5, UNKNOWN_CPU, "preprocess>inference"),)))
        return future

    stage = preprocessing_stage(Numbers(), instances=1, max_batch=1, max_delay_s=0, capacity=4)
    links = {model: Link(probe, probe, lambda: None) for model in ("wholes", "parts")}
    timeline = Timeline("preprocess")
    tensors = Pipeline({"whole": Whole(), "part": Part()}, links, stage).probe(
        Whole(), b"", "p", monotonic_ns() + 10**10, timeline
    )
    stage.close()
    assert asked == [("wholes", (1, 3, 1, 1)), ("parts", (1, 3, 1, 1))]
    assert total_ns(timeline.tiles) == timeline.total_ns
    assert [tile.stage for tile in timeline.tiles].count(Stage.TRANSIT) == 2
    assert {name: value.shape for name, value in tensors.items()} == {"parts": (1, 1)}


class Echo:
    """A backend that answers its input's first number, when it is let."""

    platform, emulated = "echo", False

    def __init__(self, go: threading.Event) -> None:
        self._go = go

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        assert self._go.wait(WAIT)
        timeline.cut(Stage.INFER)
        return {"y": batch[:, 0, 0, 0]}

    def close(self) -> None:
        pass


def test_crops_of_many_frames_are_batched_together() -> None:
    # Given an engine of the identifier that makes batches of up to 8, and is not let go yet
    go = threading.Event()
    batches: list[BatchDone] = []
    spec = ModelSpec("parts", "part", RECIPE, (TensorSpec("y", "float32", (-1,)),), law=(0, 0))
    engine = Engine(spec, lambda: Echo(go), max_batch=8, max_delay_s=0.05, batched=batches.append)
    stage = preprocessing_stage(Numbers(), instances=1, max_batch=1, max_delay_s=0, capacity=16)
    there = itertools.count(1)

    def submit(work: Work) -> Future[Outcome]:
        outcome = engine.submit(work)
        if next(there) == 24:  # all faces of all frames
            go.set()
        return outcome

    links = {"wholes": Link(Model().submit, None, lambda: None), "parts": Link(submit, None, lambda: None)}
    pipeline = Pipeline({"whole": Whole(), "part": Part()}, links, stage)
    timelines = [Timeline("preprocess") for _ in range(4)]

    def frame(i: int) -> list[float]:
        headers = {"traceparent": b"frame-%d" % i}
        timelines[i].resume()
        answer = pipeline.run(Whole(), [b"6"], f"{i}", headers, monotonic_ns() + int(WAIT * 1e9), timelines[i])
        return list(answer["parts"][0].tolist())

    # When four frames with six faces each come at once
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(frame, i) for i in range(4)]
        # Then each has its own answers
        assert [answer.result(WAIT) for answer in answers] == [parts_of(6)] * 4
    engine.close()
    stage.close()
    # and their crops were computed together
    assert sum(batch.size for batch in batches) == 24
    assert max(batch.size for batch in batches) == 8
    assert any(len({member["traceparent"] for member in batch.members}) > 1 for batch in batches)
    for timeline in timelines:
        assert total_ns(timeline.tiles) == timeline.total_ns


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Stage.RESIZE, Stage.NORMALIZE, Stage.DECODE]),
            st.integers(-5, 10**9),
            st.sampled_from([UNKNOWN_CPU, 0, 7]),
            st.sampled_from(["here", "there"]),
        ),
        max_size=30,
    )
)
def test_added_up_tiles_keep_every_sum(rows: list[tuple[Stage, int, int, str]]) -> None:
    tiles = [Tile(*row) for row in rows]
    short = added_up(tiles)
    keys = [(tile.stage, tile.where) for tile in tiles]
    assert [(tile.stage, tile.where) for tile in short] == list(dict.fromkeys(keys))
    for tile in short:
        same = [one for one in tiles if (one.stage, one.where) == (tile.stage, tile.where)]
        assert tile.duration_ns == total_ns(same)
        known = all(one.cpu_ns != UNKNOWN_CPU for one in same)
        assert tile.cpu_ns == (sum(one.cpu_ns for one in same) if known else UNKNOWN_CPU)
