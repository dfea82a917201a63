"""The walk of one request through the preprocess service: decode, prepare, infer over a link, interpret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from services.accounting import Stage, Timeline, monotonic_ns, total_ns
from services.batching import Batcher, Entry
from services.errors import DeadlineExceeded, InvalidInput
from services.link import Link
from services.messages import Array, Image, Outcome, Recipe, Submit, Tensors, Work
from services.preprocess.preprocessor import Preprocessor
from services.tasks.task import Task

WHERE = "preprocess"
_NO_PIXELS = np.empty((0, 0, 3), dtype=np.uint8)
T = TypeVar("T")


class Encoded(NamedTuple):
    """An image as it came, and what is to be made of it."""

    data: bytes | memoryview
    recipe: Recipe
    keep_pixels: bool = False


class Prepared(NamedTuple):
    """A decoded image (its size only, where its pixels are not kept) and its tensor, with the tiles of both."""

    image: Image
    tensor: Array
    timeline: Timeline


def preprocessing_stage(
    preprocessor: Preprocessor, *, instances: int, max_batch: int, max_delay_s: float, capacity: int
) -> Batcher[Encoded, Prepared]:
    """The decoding pool: as wide as the CPU limit, apart from the threads that wait at the door."""

    def process(batch: Sequence[Entry[Encoded, Prepared]]) -> None:
        for entry in batch:
            timeline = entry.timeline
            if max_batch > 1:
                timeline.cut(Stage.BATCH_WAIT)  # in line behind the earlier members of the batch, too
            else:
                timeline.resume()
            try:
                image = preprocessor.decode(entry.item.data, timeline, entry.item.recipe.crop)
                tensor = preprocessor.prepare(image, entry.item.recipe, timeline)
            except Exception as error:  # noqa: BLE001 # one bad image must not spoil the batch
                entry.future.set_exception(error)
            else:
                if not entry.item.keep_pixels:
                    # A request of many large images would hold all of them until its last one is inferred.
                    image = replace(image, pixels=_NO_PIXELS)
                entry.future.set_result(Prepared(image, tensor, timeline))

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

    def __init__(self, tasks: Mapping[str, Task], links: Mapping[str, Link], stage: Batcher[Encoded, Prepared]) -> None:
        self.tasks = tasks
        self._links = links
        self._stage = stage

    def run(
        self,
        task: Task,
        images: Sequence[bytes | memoryview],
        id_: str,
        headers: dict[str, bytes],
        deadline_ns: int,
        timeline: Timeline,
    ) -> Tensors:
        """The task's answers, stacked over `images`. Raises the `ServiceError` of the first image that has one."""
        if not images:
            raise InvalidInput("the request holds no image; give input 'image' at least one element")
        queued = [
            self._stage.submit(
                Encoded(data, task.recipe, task.needs_pixels), Timeline(WHERE, monotonic_ns()), deadline_ns
            )
            for data in images
        ]
        prepared = _collect(queued, deadline_ns, "preprocessing")
        timeline.call(_slowest([item.timeline for item in prepared]).tiles, Stage.DISPATCH)
        works = [
            Work(f"{id_}/{i}" if i else id_, task.model, item.tensor, deadline_ns, headers)
            for i, item in enumerate(prepared)
        ]
        outcomes = self._round(self._links[task.model].submit, works, timeline)
        answers = [
            task.interpret(outcome.outputs, item.image) for outcome, item in zip(outcomes, prepared, strict=True)
        ]
        tensors = {name: np.stack([answer.tensors[name] for answer in answers]) for name in answers[0].tensors}
        timeline.cut(Stage.INTERPRET)
        return tensors

    def probe(self, task: Task, id_: str, deadline_ns: int, timeline: Timeline) -> Tensors:
        """What a request costs when nothing is computed: the same bytes over the same link, there and back."""
        probe = self._links[task.model].probe
        if probe is not None:
            tensor = np.zeros((1, *task.recipe.shape), dtype=task.recipe.dtype)
            timeline.cut(Stage.NORMALIZE)
            self._round(probe, [Work(id_, task.model, tensor, deadline_ns)], timeline)
        shapes = {spec.name: (spec.dtype, [max(1, d) for d in spec.shape]) for spec in task.outputs}
        tensors: Tensors = {}
        for name, (dtype, shape) in shapes.items():
            tensors[name] = np.full(shape, b"", dtype=object) if dtype == "object" else np.zeros(shape, dtype=dtype)
        timeline.cut(Stage.INTERPRET)
        return tensors

    @staticmethod
    def _round(submit: Submit, works: Sequence[Work], timeline: Timeline) -> list[Outcome]:
        """Submit all, collect all.

        The round took as long as its last finisher: in line behind its siblings until it was submitted, its own ledger,
        and dispatch. Ties go to the lowest index.
        """
        begun: list[int] = []
        futures: list[Future[Outcome]] = []
        for work in works:
            begun.append(monotonic_ns())
            futures.append(submit(work))
        outcomes = _collect(futures, works[0].deadline_ns, "inference")
        ends = [b + total_ns(o.tiles) for b, o in zip(begun, outcomes, strict=True)]
        last = ends.index(max(ends))
        if last:
            timeline.cut_at(Stage.SEND_QUEUE, begun[last])
        timeline.call(outcomes[last].tiles, Stage.DISPATCH)
        return outcomes


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
