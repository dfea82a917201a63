"""A link joins the pipeline to an engine: in this process, or somewhere else. All accounting of movement is here.

`Remote` is the caller's end (it has the `Submit` of an engine), `expose` the callee's (it puts an engine behind a
listener). Between them a transport moves bytes and knows nothing.

What crosses beside the Open Inference Protocol's message, as headers:

    traceparent     W3C trace context, untouched
    budget-ns       what is left of the caller's time when it sends
    sent-ns, clock  the sender's monotonic stamp, and which clock that is (boot and time namespace)
    probe           "1": answer at once without the engine; what is left of the time is the link's own floor
    ledger          (reply) the callee's tiles
    waited-ns       (reply) how much longer than lately possible the request was on its way
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from services import wire
from services.accounting import (
    AgeMeter,
    Clock,
    Fact,
    Facts,
    Stage,
    Tile,
    Timeline,
    carve,
    monotonic_ns,
)
from services.cut import Form
from services.errors import DeadlineExceeded, InvalidInput, ServiceError, to_failure
from services.logs import trace_extra
from services.messages import Headers, Outcome, Submit, Tensors, TensorSpec, Work, trace_context
from services.statistics import Traffic
from services.transports.transport import Delivery, Handle, Reply, Response, Transport

_log = logging.getLogger(__name__)

INPUT = "images"
HOP = "preprocess>inference"
# The age at which a late message is dropped: its budget, and what two clocks' estimate may be off.
BUDGET_SLACK_NS = 5_000_000
# gRPC's metadata holds 8 KiB; a longer ledger travels in the payload.
_LEDGER_HEADER_LIMIT = 6000
# No message is older; who claims so has made his stamp up.
_YEARS_NS = 10**18
# What a broker's stamps resolve.
_STAMP_NS = 1_000_000
_HOUR_NS = 3_600_000_000_000
# More than clocks are slewed by from message to message: it was set.
_SET_NS = 50_000_000
# Two clocks are read within microseconds, where nothing comes between.
_LOOK_NS = 1_000_000
_LOOKS = 5


def clock_id() -> str:
    """Names the clock behind `monotonic_ns`: equal on two processes exactly if their stamps can be subtracted."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/time').readlink()}"
    except OSError:  # no such files: nothing is known, so every process is its own clock
        return uuid.uuid4().hex


class Link(NamedTuple):
    """Where a model's work goes. `probe` measures the link's floor; None where there is nothing in between.

    `healthy`: whether work can get there, as far as is known. `form`: in which images cross.
    """

    submit: Submit
    probe: Submit | None
    close: Callable[[], None]
    healthy: Callable[[], bool] = lambda: True
    form: Form = Form.F32


class Answered(NamedTuple):
    """A request that is over, at the callee: what metrics are made from.

    `model`: "" where the request could not be read. `tiles`: its whole time, of a failure too; of a record that was
    tried before, that of this try: the others have been told. `begun`: whether work was submitted for it. `trace_id`:
    where its spans are, in hexadecimal, if it was chosen here to have some.
    """

    model: str
    tiles: Sequence[Tile]
    headers: Headers
    picked_up_ns: int
    end_ns: int
    received_bytes: int
    sent_bytes: int
    error: str | None
    probe: bool
    begun: bool
    trace_id: str | None = None

    @classmethod
    def of(
        cls,
        delivery: Delivery,
        request: wire.InferRequest | None,
        timeline: Timeline,
        answer: Response | BaseException,
        *,
        probe: bool,
        begun: bool,
        trace_id: str | None = None,
        first: int = 0,
    ) -> Answered:
        """What became of a delivery. `request`: None where it could not be read; `timeline`: closed.

        `first`: of its tiles, the first of this try.
        """
        if isinstance(answer, BaseException):
            sent, error = 0, to_failure(answer).kind
        else:
            sent, error = len(answer.payload), None
        return cls(
            "" if request is None else request.model,
            timeline.tiles[first:],
            delivery.headers,
            delivery.picked_up_ns,
            timeline.last_ns,
            len(delivery.payload),
            sent,
            error,
            probe,
            begun,
            trace_id,
        )


def stamps(budget_ns: int, sent_ns: int, clock: bytes) -> dict[str, bytes]:
    """What a caller says beside its message: what is left of its time, when it sends, and by which clock."""
    return {"budget-ns": b"%d" % budget_ns, "sent-ns": b"%d" % sent_ns, "clock": clock}


class Waits:
    """Of requests and replies in a broker: carved out of a call's `transit`, whose sum stays. Thread-safe."""

    def __init__(self, clock: bytes) -> None:
        """`clock`: the caller's (see `clock_id`)."""
        self._clock = clock
        self._ages = AgeMeter()

    def carve(self, reply: Reply, timeline: Timeline, begin: int) -> None:
        """The last tile is the remainder. The request waited before the callee's tiles, which are at `begin`, the reply
        after them.
        """
        transit = len(timeline.tiles) - 1
        waited = _number(reply.headers, "waited-ns")
        if waited:
            redelivered = reply.headers.get("attempt", b"1") != b"1"
            carve(timeline.tiles, transit, Stage.REDELIVERY if redelivered else Stage.BROKER_WAIT, waited, begin)
            transit += 1
        stamp = _number(reply.headers, "sent-ns")
        if stamp is not None:
            clock = reply.headers.get("clock", b"")
            timeline.state(*_age(reply.arrived_ns - stamp, same_clock=clock == self._clock))
            excess = self._ages.excess_ns(clock.decode("ascii", "replace"), len(reply.payload), stamp, reply.arrived_ns)
            if excess:
                carve(timeline.tiles, transit, Stage.BROKER_WAIT, excess, transit + 1)


class Remote:
    """An engine on the other side of a transport."""

    def __init__(
        self, transport: Transport, where: str = "preprocess", clock: str | None = None, now: Clock = monotonic_ns
    ) -> None:
        """`clock` names the clock that `now` reads (see `clock_id`)."""
        self._transport = transport
        self._route: Facts = ((Fact.SYSTEM, transport.system), (Fact.DESTINATION, transport.destination))
        self._where = where
        self._clock = (clock or clock_id()).encode()
        self._now = now
        self._waits = Waits(self._clock)
        self.traffic = Traffic()

    def submit(self, work: Work) -> Future[Outcome]:
        """Serialize, send, and account for the way there and back. Fails with what crossed."""
        return self._send(work, {})

    def probe(self, work: Work) -> Future[Outcome]:
        """The same bytes over the same link, answered without the engine: its `transit` is the link's floor."""
        return self._send(work, {"probe": b"1"})

    def _send(self, work: Work, extra: dict[str, bytes]) -> Future[Outcome]:
        timeline = Timeline(self._where, clock=self._now)
        outcome: Future[Outcome] = Future()
        payload = wire.encode_request(work.model, work.id, {INPUT: work.tensor})
        sent = timeline.cut(Stage.SERIALIZE)
        left = work.deadline_ns - sent
        headers = {**work.headers, **extra, **stamps(left, sent, self._clock)}
        size = len(payload)
        self.traffic.sent(size)
        reply = self._transport.request(payload, headers, left / 1e9)
        reply.add_done_callback(lambda done: self._receive(done, timeline, size, outcome))
        return outcome

    def _receive(self, done: Future[Reply], timeline: Timeline, size: int, outcome: Future[Outcome]) -> None:
        # Not caught: its traceback would hold this frame, and with it the call and its megabytes, until the collector
        # comes round.
        failed = done.exception()
        if failed is not None:
            self.traffic.ended(0)
            outcome.set_exception(failed)
            return
        reply = done.result()
        self.traffic.ended(len(reply.payload))
        try:
            outcome.set_result(self._account(reply, timeline, size))
        except BaseException as error:  # noqa: BLE001 # as above
            outcome.set_exception(error)

    def _account(self, reply: Reply, timeline: Timeline, size: int) -> Outcome:
        taken_up = timeline.mark()
        ledger = reply.headers.get("ledger")
        response = wire.decode_response(reply.payload)
        # A ledger that is too long for a header is in the payload.
        tiles = wire.decode_ledger(ledger) if ledger is not None else response.tiles
        sent, begin = timeline.last_ns, len(timeline.tiles)
        facts: Facts = (*self._route, (Fact.REQUEST_BYTES, size), (Fact.REPLY_BYTES, len(reply.payload)))
        if reply.published_ns is not None:
            facts += ((Fact.PUBLISH_NS, reply.published_ns - sent),)
        # Without a ledger it is another server of the protocol: what it did with the time is not ours to guess.
        timeline.call(tiles, Stage.TRANSIT if tiles else Stage.REMOTE, reply.arrived_ns, HOP, facts)
        if tiles and self._transport.brokered:
            self._waits.carve(reply, timeline, begin)
        timeline.cut_to(Stage.DISPATCH, taken_up)
        timeline.cut(Stage.DESERIALIZE)
        return Outcome(response.outputs, tuple(timeline.tiles))

    def healthy(self) -> bool:
        """Whether the other side can be reached, as far as is known."""
        return self._transport.healthy()

    def counters(self) -> Mapping[str, int]:
        """The transport's: see `Transport.counters`."""
        return self._transport.counters()

    def close(self) -> None:
        """Fail what is in flight."""
        self._transport.close()


class Arrivals:
    """How long what arrives at a listener was under way, and until when somebody waits for it. Thread-safe."""

    def __init__(
        self,
        default_budget_s: float,
        clock: str | None = None,
        now: Clock = monotonic_ns,
        wall: Clock = time.time_ns,
    ) -> None:
        """`default_budget_s`: of who does not say. `clock` names the clock that `now` reads (see `clock_id`).

        `wall`: since the epoch, as brokers' stamps are.
        """
        self._default_budget_ns = int(default_budget_s * 1e9)
        self._clock = (clock or clock_id()).encode()
        self._now = now
        self._ages = AgeMeter()
        self._wall = wall
        # Wall clocks are kept together, so an hour of a broker's is believed; who waits for an answer has no hour.
        self._stamps = AgeMeter(_HOUR_NS)
        self._ahead_ns = self._wall_ahead_ns()

    def waited_ns(self, delivery: Delivery) -> int:
        """How much longer than lately possible it waited in a broker, by its sender's stamp, else by the broker's.

        The latter is of whole milliseconds, so that less than one is none. 0 where there is no stamp.
        """
        if not delivery.brokered:
            return 0
        size = len(delivery.payload)
        stamp = _number(delivery.headers, "sent-ns")
        if stamp is not None:
            sender = delivery.headers.get("clock", b"").decode("ascii", "replace")
            excess = self._ages.excess_ns(sender, size, stamp, delivery.arrived_ns)
            return excess if excess < _YEARS_NS else 0
        if delivery.appended_ns is None or delivery.position is None:
            return 0
        ahead_ns = self._wall_ahead_ns()
        if abs(ahead_ns - self._ahead_ns) > _SET_NS:
            self._stamps.forget()
        self._ahead_ns = ahead_ns
        # By partition: of several brokers each has a clock of its own, and leads others.
        excess = self._stamps.excess_ns(
            str(delivery.position[0]),
            size,
            delivery.appended_ns,
            delivery.arrived_ns + ahead_ns,
            known=delivery.tried is not None,
        )
        return excess if excess >= _STAMP_NS else 0

    def _wall_ahead_ns(self) -> int:
        """How far the wall clock is ahead: the best of some looks, as a thread that is held amid one sees it set."""
        looks = []
        for _ in range(_LOOKS):
            before, wall, after = self._now(), self._wall(), self._now()
            looks.append((after - before, wall - before))
            if after - before < _LOOK_NS:
                break
        return min(looks)[1]

    def deadline_ns(self, delivery: Delivery, waited_ns: int) -> int:
        """Until when its caller waits, on this clock. Raises `DeadlineExceeded` for what is too late already."""
        headers = delivery.headers
        budget, stamp = _number(headers, "budget-ns"), _number(headers, "sent-ns")
        if budget is None or stamp is None:  # a client of the plain protocol
            granted = self._default_budget_ns if delivery.timeout is None else int(delivery.timeout * 1e9)
            return delivery.received_ns + granted
        age = delivery.arrived_ns - stamp if headers.get("clock") == self._clock else waited_ns
        if age >= budget + BUDGET_SLACK_NS:
            raise DeadlineExceeded(
                f"the request was {age / 1e6:.0f} ms old at its arrival, its caller's time was {budget / 1e6:.0f} ms; "
                "nothing was computed"
            )
        return delivery.arrived_ns + budget - age


def provenance(delivery: Delivery, clock: bytes) -> Facts:
    """How it came out of a broker. `clock`: this process's."""
    facts: list[tuple[Fact, int | str]] = []
    attempt = delivery.attempt + (delivery.tried.times if delivery.tried is not None else 0)
    if attempt > 1:
        facts.append((Fact.ATTEMPT, attempt))
    if delivery.position is not None:
        facts += [(Fact.PARTITION, delivery.position[0]), (Fact.OFFSET, delivery.position[1])]
    stamp = _number(delivery.headers, "sent-ns")
    if stamp is not None:
        facts += _age(delivery.arrived_ns - stamp, same_clock=delivery.headers.get("clock") == clock)
    return tuple(facts)


def expose(
    submit: Submit,
    outputs: tuple[TensorSpec, ...],
    *,
    where: str = "inference",
    default_budget_s: float = 60.0,
    clock: str | None = None,
    now: Clock = monotonic_ns,
    answered: Callable[[Answered], None] | None = None,
) -> Handle:
    """The handler that puts an engine behind a listener. `outputs`: what a probe's answer is made of.

    `clock` names the clock that `now` reads (see `clock_id`). `answered` learns of every request when its answer
    is on its way.
    """
    return _Exposed(submit, outputs, where, default_budget_s, clock or clock_id(), now, answered)


class _Exposed:
    def __init__(
        self,
        submit: Submit,
        outputs: tuple[TensorSpec, ...],
        where: str,
        default_budget_s: float,
        clock: str,
        now: Clock,
        answered: Callable[[Answered], None] | None,
    ) -> None:
        self._submit = submit
        self._answered = answered
        self._where = where
        self._clock = clock.encode()
        self._now = now
        self._arrivals = Arrivals(default_budget_s, clock, now)
        self._empty: Tensors = {
            name: np.zeros([max(1, d) for d in shape], dtype=dtype) for name, dtype, shape in outputs
        }

    def __call__(self, delivery: Delivery) -> Future[Response]:
        timeline = Timeline(self._where, delivery.arrived_ns, self._now)
        timeline.cut_at(Stage.ADMISSION, delivery.picked_up_ns)
        if delivery.brokered:
            timeline.state(*provenance(delivery, self._clock))
        if delivery.received_ns > delivery.picked_up_ns:
            timeline.cut_at(Stage.TRANSIT, delivery.received_ns, HOP)  # the rest of its bytes came in
        timeline.resume()
        response: Future[Response] = Future()
        request: wire.InferRequest | None = None
        try:
            waited = self._arrivals.waited_ns(delivery)
            deadline_ns = self._arrivals.deadline_ns(delivery, waited)
            request = wire.decode_request(delivery.payload)
            tensor = next(iter(request.inputs.values()), None)
            if tensor is None or len(request.inputs) != 1:
                raise InvalidInput(f"a model takes one input, not {list(request.inputs)}")
            timeline.cut(Stage.DESERIALIZE)
        except ServiceError as error:
            self._tell(delivery, request, timeline, error, begun=False)
            response.set_exception(error)
            return response
        if delivery.headers.get("probe") == b"1":
            answer = self._respond(request, self._empty, timeline, waited, delivery.attempt)
            self._tell(delivery, request, timeline, answer, begun=False)
            response.set_result(answer)
            return response
        headers = trace_context(delivery.headers)
        outcome = self._submit(Work(request.id, request.model, tensor, deadline_ns, headers))

        def finish(done: Future[Outcome]) -> None:
            try:
                result = done.result()
                timeline.call(result.tiles, Stage.DISPATCH)
                wanted = request.outputs
                outputs = {n: v for n, v in result.outputs.items() if n in wanted} if wanted else result.outputs
                answer = self._respond(request, outputs, timeline, waited, delivery.attempt)
            except BaseException as error:  # noqa: BLE001 # the caller must learn of whatever it is
                if to_failure(error).kind == "internal":
                    _log.error(
                        "request %s failed: %s",
                        request.id,
                        to_failure(error).message,
                        extra=trace_extra(headers.get("traceparent")),
                    )
                self._tell(delivery, request, timeline, error)
                response.set_exception(error)
            else:
                self._tell(delivery, request, timeline, answer)
                response.set_result(answer)

        outcome.add_done_callback(finish)
        return response

    def _tell(
        self,
        delivery: Delivery,
        request: wire.InferRequest | None,
        timeline: Timeline,
        answer: Response | BaseException,
        *,
        begun: bool = True,
    ) -> None:
        """Close the ledger, and say what became of the request when its answer is on its way."""
        if isinstance(answer, BaseException):
            timeline.cut(Stage.UNANSWERED)
        answered = self._answered
        if answered is not None:
            probe = delivery.headers.get("probe") == b"1"
            delivery.after(lambda: answered(Answered.of(delivery, request, timeline, answer, probe=probe, begun=begun)))

    def _respond(
        self, request: wire.InferRequest, outputs: Tensors, timeline: Timeline, waited: int, attempt: int
    ) -> Response:
        payload = wire.encode_response(request.model, request.id, outputs)
        sent = timeline.cut(Stage.SERIALIZE)
        headers = {"sent-ns": b"%d" % sent, "clock": self._clock}
        if waited:
            headers["waited-ns"] = b"%d" % waited
        if attempt > 1:
            headers["attempt"] = b"%d" % attempt
        ledger = wire.encode_ledger(timeline.tiles)
        if len(ledger) <= _LEDGER_HEADER_LIMIT:
            headers["ledger"] = ledger
        else:
            payload += wire.ledger_parameter(timeline.tiles)
        return Response(payload, headers)


def _age(ns: int, *, same_clock: bool) -> Facts:
    """Between two clocks there is none: only what an age is beyond other ages (`AgeMeter`) means something then."""
    return ((Fact.AGE_NS, ns),) if same_clock and abs(ns) < _YEARS_NS else ()


def _number(headers: Headers, name: str) -> int | None:
    """None where there is none, or no time either: what needs more than 64 bits would not fit a float or a ledger."""
    value = headers.get(name)
    try:
        number = int(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and abs(number) < 1 << 63 else None
