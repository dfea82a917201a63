"""WHOM: a server of the Open Inference Protocol, or nobody (the generator's own ceiling).

A target opens the request's ledger at the instant at which it was due and closes it when the answer is decoded, so the
tiles sum to the client's total identically.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import numpy as np

from services import oip, wire
from services.accounting import Fact, Facts, Stage, Tile, Timeline, monotonic_ns
from services.errors import to_failure
from services.link import Waits, clock_id, stamps
from services.messages import Array, Tensors
from services.transports.grpc import GrpcTransport
from services.transports.transport import Reply, Transport

HOP = "client>preprocess"
WHERE = "client"
NULL = "null:"


class Exchange(NamedTuple):
    """One request and what became of it. Times: monotonic ns. `error`: None, or the kind of the failure."""

    id: str
    due_ns: int
    done_ns: int
    tiles: tuple[Tile, ...]
    error: str | None
    message: str
    outputs: Tensors
    traceparent: str

    @property
    def total_ns(self) -> int:
        """From due to decoded."""
        return self.done_ns - self.due_ns


class Target(Protocol):
    """Somebody to ask."""

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        """Ask about `image` (of `tensors`: for a door, a BYTES tensor [1]); the Future
        always completes, with failures as `Exchange.error`.

        `probe`: the server moves the same bytes and computes nothing. `sampled`: ask for a trace.
        """
        ...

    def tensors(self, images: Sequence[bytes]) -> list[Array]:
        """What `send` takes of encoded images."""
        ...

    def emulated(self) -> bool:
        """Whether the server says that its model's times stand in for a device."""
        ...

    def close(self) -> None:
        """Fail what is in flight."""
        ...


class NullTarget:
    """Answers at once: what remains is the generator's own cost."""

    def send(
        self,
        image: Array,
        id_: str,
        due_ns: int,
        *,
        probe: bool = False,  # noqa: ARG002 # as the protocol has it
        sampled: bool = False,  # noqa: ARG002
    ) -> Future[Exchange]:  # the protocol's
        """See `Target.send`."""
        timeline = Timeline(WHERE, due_ns)
        timeline.cut(Stage.SCHEDULE_LAG)
        wire.encode_request("null", id_, {"image": image})
        done = timeline.cut(Stage.SERIALIZE)
        future: Future[Exchange] = Future()
        future.set_result(Exchange(id_, due_ns, done, tuple(timeline.tiles), None, "", {}, ""))
        return future

    def tensors(self, images: Sequence[bytes]) -> list[Array]:
        """See `Target.tensors`."""
        return [image_tensor(image) for image in images]

    def emulated(self) -> bool:
        """Nothing is."""
        return False

    def close(self) -> None:
        """Nothing to close."""


class OipTarget:
    """A door, over gRPC, or over a broker that it takes requests from."""

    def __init__(
        self,
        host_port: str,
        task: str,
        timeout_s: float,
        *,
        holds_ledger: bool = False,
        sample_ratio: float = 0.0,
        outputs: Sequence[str] = (),
        over: Transport | None = None,
    ) -> None:
        """`outputs`: of the task, by name (none: those that it answers unasked). `over`: by which requests go, which is
        closed with this; the door is only asked what its model is then. The rest: `targets.open_target`.
        """
        self._outputs = tuple(outputs)
        self._door = GrpcTransport(host_port)
        self._transport: Transport = self._door if over is None else over
        self._route: Facts = (
            (Fact.SYSTEM, self._transport.system),
            (Fact.DESTINATION, host_port if over is None else over.destination),
        )
        self._headers = {"ledger-holder": b"1"} if holds_ledger else {}
        self._clock = clock_id().encode()
        self._waits = Waits(self._clock)
        self._task = task
        self._timeout_s = timeout_s
        self._sample_ratio = sample_ratio

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        """See `Target.send`."""
        timeline = Timeline(WHERE, due_ns)
        timeline.cut(Stage.SCHEDULE_LAG)
        payload = wire.encode_request(
            self._task, id_, {"image": image}, self._outputs, {"probe": True} if probe else None
        )
        sent = timeline.cut(Stage.SERIALIZE)
        sampled = sampled or (random.random() < self._sample_ratio and not probe)  # noqa: S311 # a sample, no secret
        traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{'01' if sampled else '00'}"
        future: Future[Exchange] = Future()
        headers = {**self._headers, "traceparent": traceparent.encode()}
        if self._transport.brokered:
            headers[wire.CONTENT_TYPE] = wire.PROTOBUF
            headers |= stamps(int(self._timeout_s * 1e9), sent, self._clock)
        size = len(payload)
        reply = self._transport.request(payload, headers, self._timeout_s)
        reply.add_done_callback(lambda done: self._receive(done, timeline, id_, traceparent, size, sent, future))
        return future

    def _receive(
        self,
        done: Future[Reply],
        timeline: Timeline,
        id_: str,
        traceparent: str,
        size: int,
        sent: int,
        future: Future[Exchange],
    ) -> None:
        outputs: Mapping[str, Array] = {}
        error, message = None, ""
        taken_up = timeline.mark()
        try:
            reply = done.result()
            response = wire.decode_response(reply.payload)
        except Exception as failed:  # noqa: BLE001 # whatever a stranger answered, the one who waits must learn of it
            error, message = to_failure(failed)
            timeline.cut_at(Stage.UNANSWERED, monotonic_ns(), HOP)
        else:
            outputs = response.outputs
            # The ledger is in the reply, so it is decoded before the boundaries are drawn that came before that.
            remainder = Stage.TRANSIT if response.tiles else Stage.REMOTE
            facts = (*self._route, (Fact.REQUEST_BYTES, size), (Fact.REPLY_BYTES, len(reply.payload)))
            if reply.published_ns is not None:
                facts += ((Fact.PUBLISH_NS, reply.published_ns - sent),)
            begin = len(timeline.tiles)
            timeline.call(response.tiles, remainder, reply.arrived_ns, HOP, facts)
            if self._transport.brokered and response.tiles:
                self._waits.carve(reply, timeline, begin)
            timeline.cut_to(Stage.DISPATCH, taken_up)
            timeline.cut(Stage.DESERIALIZE)
        future.set_result(
            Exchange(
                id_,
                timeline.start_ns,
                timeline.last_ns,
                tuple(timeline.tiles),
                error,
                message,
                dict(outputs),
                traceparent,
            )
        )

    def tensors(self, images: Sequence[bytes]) -> list[Array]:
        """See `Target.tensors`."""
        return [image_tensor(image) for image in images]

    def emulated(self) -> bool:
        """By the platform in the model's metadata. Raises `ServiceError`."""
        reply = self._door.ask("ModelMetadata", oip.metadata_request(self._task), self._timeout_s)
        return "emulated" in oip.platform_of(reply)

    def close(self) -> None:
        """See `Target.close`."""
        self._transport.close()
        if self._transport is not self._door:
            self._door.close()


def image_tensor(data: bytes) -> Array:
    """An encoded image as the door's input: BYTES [1]."""
    tensor = np.empty(1, dtype=np.object_)
    tensor[0] = data
    return tensor
