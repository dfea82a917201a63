"""The door: what the public sends comes in here, and the answer with its ledger goes out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from services import wire
from services.accounting import Breakdown, Group, Stage, Tile, Timeline, total_ns
from services.errors import InvalidInput, Overloaded, UnknownModel, to_failure
from services.link import Answered, Arrivals, clock_id, provenance
from services.logs import trace_extra
from services.messages import Finished, Tensors, trace_context
from services.pipeline import WHERE, Pipeline
from services.statistics import Counter, Statistics
from services.tasks.task import Task
from services.transports.transport import Delivery, Response

_log = logging.getLogger(__name__)

INPUT = "image"
HOP = "client>preprocess"


class Entrance(NamedTuple):
    """One way into the door. `read`: the request in a delivery, raises `InvalidInput`. `answered`: learns of each.

    `system`, `destination`: what moves the bytes ("grpc", "kafka", "redis"), and from where.
    """

    read: Callable[[Delivery], wire.InferRequest] = lambda delivery: wire.decode_request(delivery.payload)
    answered: Callable[[Answered], None] | None = None
    system: str = "grpc"
    destination: str = ""


class Door:
    """A handler for any listener: gRPC in public, a broker for cameras. Blocks its caller until the answer is there."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        admission_limit: int,
        default_timeout_s: float,
        served: Callable[[Finished], str | None] | None = None,
        answered: Callable[[Answered], None] | None = None,
    ) -> None:
        """`admission_limit`: requests inside at once; more are refused with `Overloaded`.

        When its answer is on its way, `served` learns of every request that could be read, and says in which trace its
        spans will be, if it has any; then `answered`, of gRPC's entrance, learns of every request.
        """
        self._pipeline = pipeline
        self.admission_limit = admission_limit
        self._lock = threading.Lock()
        self._inside = 0
        self._public = Entrance(answered=answered)
        self._clock = clock_id().encode()
        self._served = served
        self._arrivals = Arrivals(default_timeout_s)
        self._counters = {name: Counter() for name in pipeline.tasks}

    def statistics(self, task: str) -> Statistics:
        """The counts of a task so far."""
        return self._counters[task].snapshot()

    def inside(self) -> int:
        """Requests that were admitted and are not answered."""
        return self._inside

    def _enter(self) -> bool:
        with self._lock:
            admitted = self._inside < self.admission_limit
            self._inside += admitted
            return admitted

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def __call__(self, delivery: Delivery) -> Future[Response]:
        """See `Handle`; never raises."""
        return self.handle(delivery, self._public)

    def handle(self, delivery: Delivery, entrance: Entrance) -> Future[Response]:
        """As a call, for what came in by `entrance`."""
        waited_ns = self._arrivals.waited_ns(delivery)
        timeline = Timeline(WHERE, delivery.arrived_ns - waited_ns)
        if waited_ns:
            again = delivery.attempt > 1
            timeline.cut_at(Stage.REDELIVERY if again else Stage.BROKER_WAIT, delivery.arrived_ns, HOP)
        first = 0
        if delivery.tried is not None:
            timeline.cut_at(Stage.RETRY, delivery.tried.until_ns)  # with the pauses in between
            # What came before was told of by the tries before, each of which is a request to who counts.
            first = len(timeline.tiles)
        timeline.cut_at(Stage.ADMISSION, delivery.picked_up_ns)
        if delivery.brokered:
            timeline.state(*provenance(delivery, self._clock))
        else:
            timeline.cut_at(Stage.TRANSIT, delivery.received_ns, HOP)  # the rest of its bytes came in
        timeline.resume()
        response: Future[Response] = Future()
        request: wire.InferRequest | None = None
        answer: Response | Exception
        try:
            request = entrance.read(delivery)
            timeline.cut(Stage.DESERIALIZE)
            deadline_ns = self._arrivals.deadline_ns(delivery, waited_ns)
            payload = self._answer(request, delivery, deadline_ns, timeline)
            answer = Response(payload, self._headers(timeline) if delivery.brokered else {})
        except Exception as raised:  # noqa: BLE001 # every request gets an answer, the next one is unharmed
            timeline.cut(Stage.UNANSWERED)
            failure = to_failure(raised)
            ours = failure.kind == "internal"
            _log.log(
                logging.ERROR if ours else logging.INFO,
                "request failed: %s: %s",
                failure.kind,
                failure.message,
                exc_info=ours,
                extra=trace_extra(delivery.headers.get("traceparent")),
            )
            # Its traceback holds this frame, which holds it: a circle that would keep the message, megabytes of images,
            # until the collector comes round.
            answer = raised.with_traceback(None)
        if request is not None:
            self._count(request, timeline.tiles[first:], answer)  # before the answer: who has it finds it counted
        if self._served is not None or entrance.answered is not None:
            delivery.after(lambda: self._tell(delivery, request, timeline, answer, entrance, first))
        if isinstance(answer, Exception):
            response.set_exception(answer)
        else:
            response.set_result(answer)
        return response

    def _headers(self, timeline: Timeline) -> dict[str, bytes]:
        """Beside an answer that goes into a broker."""
        return {wire.CONTENT_TYPE: wire.PROTOBUF, "sent-ns": b"%d" % timeline.last_ns, "clock": self._clock}

    def _answer(self, request: wire.InferRequest, delivery: Delivery, deadline_ns: int, timeline: Timeline) -> bytes:
        task = self._pipeline.tasks.get(request.model)
        if task is None:
            known = ", ".join(self._pipeline.tasks)
            raise UnknownModel(
                f"there is no task '{request.model}' here; the model name of a request is one of: {known}"
            )
        if request.version not in ("", wire.VERSION):
            raise UnknownModel(
                f"task '{request.model}' has no version '{request.version}'; it has '{wire.VERSION}', or give none"
            )
        # What waits in a broker waits there: its listener takes no more than it may have in hand, and it takes nobody's
        # place here. Nor is it refused behind the door, while there is time.
        if not (delivery.brokered or self._enter()):
            raise Overloaded(
                f"{self.admission_limit} requests are inside already (--admission-limit); "
                "try again later, or add preprocess replicas"
            )
        try:
            images = _images(request, task)
            if _is_probe(request):
                image = images[0] if images else b""
                tensors = self._pipeline.probe(task, image, request.id, deadline_ns, timeline)
            else:
                context = trace_context(delivery.headers)
                tensors = self._pipeline.run(
                    task, images, request.id, context, deadline_ns, timeline, patient=delivery.brokered
                )
                tensors = _wanted(request, task, tensors)
        finally:
            if not delivery.brokered:
                self._leave()
        payload = wire.encode_response(request.model, request.id, tensors)
        timeline.cut(Stage.SERIALIZE)
        return payload + wire.ledger_parameter(timeline.tiles)

    def _count(self, request: wire.InferRequest, tiles: Sequence[Tile], answer: Response | Exception) -> None:
        counter = self._counters.get(request.model)
        if counter is None or _is_probe(request):
            return
        total = total_ns(tiles)
        if isinstance(answer, Exception):
            counter.failed(total)
            return
        groups = Breakdown.of(tiles).by_group
        queued, infer = groups.get(Group.QUEUEING, 0), groups.get(Group.INFERENCE, 0)
        output = total_ns(tiles[-2:])  # interpret, serialize
        into = total - int(queued) - int(infer) - output
        counter.succeeded([total], [int(queued)], max(0, into), int(infer), output)

    def _tell(
        self,
        delivery: Delivery,
        request: wire.InferRequest | None,
        timeline: Timeline,
        answer: Response | Exception,
        entrance: Entrance,
        first: int,
    ) -> None:
        """Spans are chosen first, so that metrics can name their trace. `first`: see `Answered.of`."""
        trace_id = None
        if self._served is not None and request is not None:
            error = to_failure(answer).kind if isinstance(answer, Exception) else None
            trace_id = self._served(
                Finished(
                    request.id,
                    request.model,
                    timeline.start_ns,
                    tuple(timeline.tiles),
                    delivery.headers,
                    error,
                    (entrance.system, entrance.destination),
                )
            )
        if entrance.answered is not None:
            read = request is not None
            probe = request is not None and _is_probe(request)
            entrance.answered(
                Answered.of(
                    delivery, request, timeline, answer, probe=probe, begun=read, trace_id=trace_id, first=first
                )
            )


def _is_probe(request: wire.InferRequest) -> bool:
    """Only the boolean: what a stranger calls `probe` must not get him an answer of zeros."""
    return request.parameters.get("probe") is True


def _images(request: wire.InferRequest, task: Task) -> list[bytes | memoryview]:
    """The encoded images of the request. Raises `InvalidInput` that says what is wrong and what is right."""
    right = f"task '{task.name}' takes one input '{INPUT}', datatype BYTES, shape [n], each element an encoded image"
    if list(request.inputs) != [INPUT]:
        raise InvalidInput(f"the request has inputs {list(request.inputs)}; {right}")
    array = request.inputs[INPUT]
    if array.dtype != np.object_:
        raise InvalidInput(f"input '{INPUT}' has datatype {wire.DATATYPE_OF[array.dtype]}; {right}")
    if array.ndim != 1:
        raise InvalidInput(f"input '{INPUT}' has shape {list(array.shape)}; {right}")
    if task.ragged and len(array) != 1:
        raise InvalidInput(f"task '{task.name}' takes one image per request, not {len(array)}")
    return list(array)


def _wanted(request: wire.InferRequest, task: Task, tensors: Tensors) -> Tensors:
    names = request.outputs or tuple(spec.name for spec in task.outputs)
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise InvalidInput(f"task '{task.name}' has no output {unknown}; it has {list(tensors)}")
    return {name: tensors[name] for name in names}
