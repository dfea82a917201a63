"""WHOM: an inference service, asked without a door: what goes there are the tensors that a door would send.

The throughput of inference alone, which preprocessing takes away from, is measured so. Preparing is done before the
load, and is no part of any request.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from loadgen.errors import PlanError
from loadgen.target import WHERE, Exchange
from services import oip
from services.accounting import Stage, Timeline, monotonic_ns
from services.errors import ConfigurationError, to_failure
from services.link import Remote
from services.messages import Array, Outcome, Work
from services.models.catalogue import load_catalogue
from services.preprocess import preprocessor
from services.transports.grpc import GrpcTransport

_MAX_PIXELS = 100_000_000


class EngineTarget:
    """One model of one inference service, over gRPC. Its answers are the model's output tensors."""

    def __init__(
        self,
        host_port: str,
        model: str,
        timeout_s: float,
        *,
        models_file: Path | None = None,
        sample_ratio: float = 0.0,
    ) -> None:
        """`models_file`: that of the service, for the model's recipe (default: the project's). Raises `PlanError`."""
        try:
            catalogue = load_catalogue(models_file)
        except ConfigurationError as error:
            raise PlanError(error.message) from None
        if model not in catalogue:
            raise PlanError(
                f"target 'grpc://{host_port}/{model}': the models file has no '{model}'; it has {', '.join(catalogue)}"
            )
        self._recipe = catalogue[model].recipe
        self._model = model
        self._transport = GrpcTransport(host_port)
        self._remote = Remote(self._transport, WHERE)
        self._timeout_s = timeout_s
        self._sample_ratio = sample_ratio

    def tensors(self, images: Sequence[bytes]) -> list[Array]:
        """See `Target.tensors`: each decoded, resized and normalized as a door would have done it."""
        opencv = preprocessor.load("opencv", _MAX_PIXELS, scaled=True)
        prepared = []
        for data in images:
            timeline = Timeline(WHERE)
            prepared.append(opencv.prepare(opencv.decode(data, timeline, self._recipe.crop), self._recipe, timeline))
        return prepared

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        """See `Target.send`; `image` is of `tensors`."""
        timeline = Timeline(WHERE, due_ns)
        timeline.cut(Stage.SCHEDULE_LAG)
        sampled = sampled or (random.random() < self._sample_ratio and not probe)  # noqa: S311 # a sample, no secret
        traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"
        deadline_ns = timeline.last_ns + round(self._timeout_s * 1e9)
        work = Work(id_, self._model, image, deadline_ns, {"traceparent": traceparent.encode()})
        future: Future[Exchange] = Future()

        def receive(done: Future[Outcome]) -> None:
            error, message = None, ""
            outcome = Outcome({}, ())
            try:
                outcome = done.result()
            except Exception as failed:  # noqa: BLE001 # whoever waits must learn of it
                error, message = to_failure(failed)
                timeline.cut_at(Stage.UNANSWERED, monotonic_ns(), WHERE)
            else:
                timeline.call(outcome.tiles, Stage.DISPATCH)
            tiles = tuple(timeline.tiles)
            future.set_result(
                Exchange(
                    id_, timeline.start_ns, timeline.last_ns, tiles, error, message, dict(outcome.outputs), traceparent
                )
            )

        submit = self._remote.probe if probe else self._remote.submit
        submit(work).add_done_callback(receive)
        return future

    def emulated(self) -> bool:
        """By the platform in the model's metadata. Raises `ServiceError`."""
        return "emulated" in oip.platform_of(
            self._transport.ask("ModelMetadata", oip.metadata_request(self._model), self._timeout_s)
        )

    def close(self) -> None:
        """See `Target.close`."""
        self._remote.close()
