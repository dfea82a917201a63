"""Before the engine: what came in another form than the model's own input is made into it, by threads of its own.

The device's thread must not decode, and the threads that answer the network must not either: they are many, and would
stand in each other's way.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from services.accounting import Stage, Timeline, monotonic_ns
from services.batching import Batcher, Entry
from services.cut import SIZE, Form, form_of
from services.errors import ServiceError
from services.messages import Array, Outcome, Recipe, Submit, Tensors, Work
from services.preprocess.normalize import normalize
from services.preprocess.preprocessor import Preprocessor

WHERE = "inference"


class _Made(NamedTuple):
    """`tensor`: the model's input. `extra`: outputs that are known already. `timeline`: of this service, so far."""

    tensor: Array
    extra: Tensors
    timeline: Timeline


class Intake:
    """`submit` takes what an engine's takes, in any `Form`."""

    def __init__(
        self, submit: Submit, recipe: Recipe, preprocessor: Preprocessor, *, instances: int, capacity: int
    ) -> None:
        """`submit`: the engine's. `instances`: threads; `capacity`: images that may wait for one, more are refused."""
        self._submit = submit
        self._recipe = recipe
        self._preprocessor = preprocessor
        self.queue: Batcher[tuple[Form, Array], _Made] = Batcher(
            "intake", lambda _: self._make, queue_stage=Stage.PREPROCESS_QUEUE, workers=instances, capacity=capacity
        )

    def submit(self, work: Work) -> Future[Outcome]:
        """The engine's answer. Fails as the engine does, and with what is wrong with an image.

        Of an encoded image the outcome also says, by `SIZE`, how large it was.
        """
        form = form_of(work.tensor, self._recipe)
        if form is None or form is Form.F32:  # the model's own, or what the engine will refuse
            return self._submit(work)
        outcome: Future[Outcome] = Future()

        def made(done: Future[_Made]) -> None:
            try:
                mine = done.result()
                answer = self._submit(Work(work.id, work.model, mine.tensor, work.deadline_ns, work.headers))
            except BaseException as error:  # noqa: BLE001 # whoever waits must learn of it
                outcome.set_exception(error)
                return
            answer.add_done_callback(lambda done: inferred(done, mine))

        def inferred(done: Future[Outcome], mine: _Made) -> None:
            try:
                result = done.result()
                mine.timeline.call(result.tiles, Stage.DISPATCH)
                whole = Outcome({**result.outputs, **mine.extra}, tuple(mine.timeline.tiles))
            except BaseException as error:  # noqa: BLE001 # as above
                outcome.set_exception(error)
            else:
                outcome.set_result(whole)

        self.queue.submit((form, work.tensor), Timeline(WHERE, monotonic_ns()), work.deadline_ns).add_done_callback(
            made
        )
        return outcome

    def _make(self, batch: Sequence[Entry[tuple[Form, Array], _Made]]) -> None:
        for entry in batch:
            entry.timeline.resume()
            try:
                made = self._made(*entry.item, entry.timeline)
            except ServiceError as error:
                entry.future.set_exception(error)
            else:
                entry.future.set_result(made)

    def _made(self, form: Form, tensor: Array, timeline: Timeline) -> _Made:
        if form is Form.JPEG:
            image = self._preprocessor.decode(tensor[0], timeline, self._recipe.crop)
            size = np.array([[image.width, image.height]], np.int64)
            return _Made(self._preprocessor.prepare(image, self._recipe, timeline), {SIZE: size}, timeline)
        own = normalize(tensor[0], self._recipe) if form is Form.U8 else tensor.astype(self._recipe.dtype)
        timeline.cut(Stage.NORMALIZE)
        return _Made(own, {}, timeline)

    def close(self) -> None:
        """Fail what waits."""
        self.queue.close()
