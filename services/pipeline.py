"""The walk of one request through the preprocess service: decode, prepare, infer over a link, interpret."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from services.accounting import Stage, Timeline, added_up, monotonic_ns, total_ns
from services.batching import Batcher, Entry
from services.cut import SIZE, crossing
from services.errors import DeadlineExceeded, Internal, InvalidInput, Overloaded
from services.link import Link
from services.messages import Answer, Array, Image, Outcome, Recipe, Submit, Tensors, Work
from services.preprocess.preprocessor import Preprocessor
from services.tasks.task import FollowUp, Task

WHERE = "preprocess"
# Of who waits: what a queue that is full is given before it is asked again, at first and in the end.
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.4
_NO_PIXELS = np.empty((0, 0, 3), dtype=np.uint8)
T = TypeVar("T")


class Encoded(NamedTuple):
    """An image as it came, and what is to be made of it."""

    data: bytes | memoryview
    recipe: Recipe
    keep_pixels: bool = False


class Crops(NamedTuple):
    """Parts of a decoded image, at least one, each of which is to become a tensor."""

    images: tuple[Image, ...]
    recipe: Recipe


class Prepared(NamedTuple):
    """A decoded image (its size only, where its pixels are not kept) and its tensor, with the tiles of both.

    Of crops, `image` is the first, and there is a tensor for each.
    """

    image: Image
    tensors: tuple[Array, ...]
    timeline: Timeline


Stuff = Encoded | Crops


def preprocessing_stage(
    preprocessor: Preprocessor, *, instances: int, max_batch: int, max_delay_s: float, capacity: int
) -> Batcher[Stuff, Prepared]:
    """The decoding pool: as wide as the CPU limit, apart from the threads that wait at the door.

    An image's crops are one entry: they would not be done sooner one by one, when other requests wait as well.
    """

    def decode(item: Encoded, timeline: Timeline) -> Prepared:
        # Who looks at the image again gets all of its pixels.
        image = preprocessor.decode(item.data, timeline, 0 if item.keep_pixels else item.recipe.crop)
        tensor = preprocessor.prepare(image, item.recipe, timeline)
        # A request of many large images would hold all of them until its last one is inferred.
        image = preprocessor.to_host(image, timeline) if item.keep_pixels else replace(image, pixels=_NO_PIXELS)
        return Prepared(image, (tensor,), timeline)

    def cut_out(item: Crops, timeline: Timeline) -> Prepared:
        begin = len(timeline.tiles)
        tensors = tuple(preprocessor.prepare(image, item.recipe, timeline) for image in item.images)
        timeline.tiles[begin:] = added_up(timeline.tiles[begin:])  # a hundred faces are no hundred rows
        return Prepared(item.images[0], tensors, timeline)

    def process(batch: Sequence[Entry[Stuff, Prepared]]) -> None:
        for entry in batch:
            timeline = entry.timeline
            if max_batch > 1:
                timeline.cut(Stage.BATCH_WAIT)  # in line behind the earlier members of the batch, too
            else:
                timeline.resume()
            item = entry.item
            try:
                prepared = decode(item, timeline) if isinstance(item, Encoded) else cut_out(item, timeline)
            except Exception as error:  # noqa: BLE001 # one bad image must not spoil the batch
                entry.future.set_exception(error)
            else:
                entry.future.set_result(prepared)

    return Batcher(
        "preprocessing",
        lambda _: process,
        queue_stage=Stage.PREPROCESS_QUEUE,
        workers=instances,
        max_batch=max_batch,
        max_delay_s=max_delay_s,
        capacity=capacity,
    )


class Pipeline:
    """Stateless beyond its parts; `run` is called from many threads at once, each blocks in it."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        links: Mapping[str, Link],
        stage: Batcher[Stuff, Prepared],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`pause`: a clock's sleep, in s."""
        self.tasks = tasks
        self._links = links
        self._stage = stage
        self._pause = pause

    def run(
        self,
        task: Task,
        images: Sequence[bytes | memoryview],
        id_: str,
        headers: dict[str, bytes],
        deadline_ns: int,
        timeline: Timeline,
        *,
        patient: bool = False,
    ) -> Tensors:
        """The task's answers, stacked over `images`. Raises the `ServiceError` of the first image that has one.

        `patient`: what is refused now, for a queue is full, is asked again until the deadline.
        """
        if not images:
            raise InvalidInput("the request holds no image; give input 'image' at least one element")
        link = self._links[task.model]
        recipe = crossing(task.recipe, link.form)
        prepared: list[Prepared] = []
        if recipe is not None:
            prepared = self._prepare(
                [Encoded(data, recipe, task.needs_pixels) for data in images], deadline_ns, timeline, patient
            )
        inputs = [item.tensors[0] for item in prepared] or [_as_it_came(data) for data in images]
        works = [
            Work(f"{id_}/{i}" if i else id_, task.model, tensor, deadline_ns, headers)
            for i, tensor in enumerate(inputs)
        ]
        outcomes = self._round([(link.submit, work) for work in works], timeline, patient)
        decoded = [item.image for item in prepared] or [_decoded_there(outcome) for outcome in outcomes]
        answers = [task.interpret(outcome.outputs, image) for outcome, image in zip(outcomes, decoded, strict=True)]
        follow_ups = [task.follow_up(image, answer) for image, answer in zip(decoded, answers, strict=True)]
        if any(follow_ups):
            timeline.cut(Stage.INTERPRET)
            answers = self._follow(follow_ups, answers, works, timeline, patient)
        tensors = {name: np.stack([answer.tensors[name] for answer in answers]) for name in answers[0].tensors}
        timeline.cut(Stage.INTERPRET)
        return tensors

    def _follow(
        self,
        follow_ups: Sequence[FollowUp | None],
        answers: Sequence[Answer],
        works: Sequence[Work],
        timeline: Timeline,
        patient: bool,
    ) -> list[Answer]:
        """One more round, about parts of the images: all crops of all images are submitted, then collected."""
        asking = [(index, follow_up) for index, follow_up in enumerate(follow_ups) if follow_up and follow_up.crops]
        of_image: dict[int, list[Answer]] = {}
        if asking:
            asked = [self.tasks[follow_up.task] for _, follow_up in asking]
            prepared = self._prepare(
                [
                    Crops(follow_up.crops, self._made_by(task))
                    for (_, follow_up), task in zip(asking, asked, strict=True)
                ],
                works[0].deadline_ns,
                timeline,
                patient,
            )
            questions: list[tuple[Submit, Work]] = []
            for (index, _), task, item in zip(asking, asked, prepared, strict=True):
                parent = works[index]
                questions += [
                    (
                        self._links[task.model].submit,
                        replace(parent, id=f"{parent.id}/crop-{i}", model=task.model, tensor=t),
                    )
                    for i, t in enumerate(item.tensors)
                ]
            outcomes = iter(self._round(questions, timeline, patient))
            for (index, follow_up), task in zip(asking, asked, strict=True):
                of_image[index] = [task.interpret(next(outcomes).outputs, crop) for crop in follow_up.crops]
        return [
            answer
            if follow_up is None
            else follow_up.conclude(of_image.get(index, []), self.tasks[follow_up.task].outputs)
            for index, (follow_up, answer) in enumerate(zip(follow_ups, answers, strict=True))
        ]

    def _made_by(self, task: Task) -> Recipe:
        """What crops cross by."""
        recipe = crossing(task.recipe, self._links[task.model].form)
        assert recipe is not None  # noqa: S101 # `wiring` refuses to send crops encoded, which they are not
        return recipe

    def probe(self, task: Task, image: bytes | memoryview, id_: str, deadline_ns: int, timeline: Timeline) -> Tensors:
        """What a request costs when nothing is computed: the same bytes over the same links, there and back.

        Of a task that asks further ones, one crop is asked about.
        """
        for asked in (task, *(self.tasks[name] for name in task.asks)):
            probe = self._links[asked.model].probe
            if probe is not None:
                recipe = crossing(asked.recipe, self._links[asked.model].form)
                tensor = _as_it_came(image) if recipe is None else np.zeros((1, *recipe.shape), dtype=recipe.dtype)
                timeline.cut(Stage.NORMALIZE)
                self._round([(probe, Work(id_, asked.model, tensor, deadline_ns))], timeline, patient=False)
        shapes = {spec.name: (spec.dtype, [max(1, d) for d in spec.shape]) for spec in task.outputs}
        tensors: Tensors = {}
        for name, (dtype, shape) in shapes.items():
            tensors[name] = np.full(shape, b"", dtype=object) if dtype == "object" else np.zeros(shape, dtype=dtype)
        timeline.cut(Stage.INTERPRET)
        return tensors

    def _prepare(self, items: Sequence[Stuff], deadline_ns: int, timeline: Timeline, patient: bool) -> list[Prepared]:
        """All in the pool at once; they took as long as the last of them."""

        def submit(index: int) -> Future[Prepared]:
            return self._stage.submit(items[index], Timeline(WHERE, monotonic_ns()), deadline_ns)

        prepared, _, again = self._all(len(items), submit, deadline_ns, "preprocessing", patient)
        slowest = _slowest([item.timeline for item in prepared])
        if again:
            timeline.cut_at(Stage.RETRY, slowest.start_ns)
        timeline.call(slowest.tiles, Stage.DISPATCH)
        return prepared

    def _round(self, works: Sequence[tuple[Submit, Work]], timeline: Timeline, patient: bool) -> list[Outcome]:
        """Submit all, each where it belongs; collect all.

        The round took as long as its last finisher: in line behind its siblings until it was submitted, or refused
        until then, its own ledger, and dispatch. Ties go to the lowest index.
        """

        def submit(index: int) -> Future[Outcome]:
            ask, work = works[index]
            return ask(work)

        outcomes, begun, again = self._all(len(works), submit, works[0][1].deadline_ns, "inference", patient)
        ends = [b + total_ns(o.tiles) for b, o in zip(begun, outcomes, strict=True)]
        last = ends.index(max(ends))
        if last or again:
            timeline.cut_at(Stage.RETRY if last in again else Stage.SEND_QUEUE, begun[last])
        timeline.call(outcomes[last].tiles, Stage.DISPATCH)
        return outcomes

    def _all(
        self, count: int, submit: Callable[[int], Future[T]], deadline_ns: int, stage: str, patient: bool
    ) -> tuple[list[T], list[int], set[int]]:
        """All results, in order; when each was submitted for the last time; which were refused before.

        Raises as `_collect`.
        """
        begun, futures = [0] * count, [Future[T]()] * count
        again: set[int] = set()
        asked, pause_s = list(range(count)), _PAUSE_S
        while True:
            for index in asked:
                begun[index] = monotonic_ns()
                futures[index] = submit(index)
            asked = self._refused(futures, deadline_ns, pause_s) if patient else []
            if not asked:
                return _collect(futures, deadline_ns, stage), begun, again
            again.update(asked)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _refused(self, futures: Sequence[Future[T]], deadline_ns: int, pause_s: float) -> list[int]:
        """After a pause, those that are to be asked again, while others go on; none when all are done or time is up.

        Raises what one of them failed of for good.
        """
        while True:
            errors = [future.exception() if future.done() else None for future in futures]
            for error in errors:
                if error is not None and not isinstance(error, Overloaded):
                    raise error
            left_s = (deadline_ns - monotonic_ns()) / 1e9
            running = [future for future in futures if not future.done()]
            if left_s < 2 * pause_s:
                return []
            if any(errors):
                self._pause(pause_s)
                return [index for index, error in enumerate(errors) if error is not None]
            if not running:
                return []
            wait_for(running, left_s, FIRST_COMPLETED)


def _as_it_came(data: bytes | memoryview) -> Array:
    """A tensor of one encoded image."""
    tensor = np.empty(1, dtype=np.object_)
    tensor[0] = data
    return tensor


def _decoded_there(outcome: Outcome) -> Image:
    """The image of which only the other side has seen the pixels. Raises `Internal` where it does not tell its size."""
    size = outcome.outputs.pop(SIZE, None)
    if size is None or size.shape != (1, 2):
        raise Internal(
            f"the inference service did not say how large the image was (output '{SIZE}'); images cross encoded "
            "(--cut jpeg), which needs an inference service of this suite, of this version or later"
        )
    return Image(_NO_PIXELS, int(size[0, 0]), int(size[0, 1]))


def _slowest(timelines: Sequence[Timeline]) -> Timeline:
    """The one that finished last: a round takes as long as it did. Ties go to the lowest index."""
    return max(timelines, key=lambda timeline: timeline.last_ns)


def _collect(futures: Sequence[Future[T]], deadline_ns: int, stage: str) -> list[T]:
    """All results, in order. Raises the first error, by index; `DeadlineExceeded` for what is not done in time."""
    if len(futures) > 1:
        wait_for(futures, max(0.0, (deadline_ns - monotonic_ns()) / 1e9))
    results = []
    for future in futures:
        try:
            results.append(future.result(max(0.0, (deadline_ns - monotonic_ns()) / 1e9)))
        except TimeoutError:
            raise DeadlineExceeded(f"the caller's time was spent during {stage}") from None
    return results
