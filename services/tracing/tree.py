"""One ledger -> one tree of spans, as OTLP messages.

    classification                      the request, in who holds the ledger outermost
      serialize, ...                    a span per tile
      inference...ModelInfer  CLIENT    a hop over gRPC, around
        inference...ModelInfer SERVER   the other service, around its own tiles
        transit
      send topic  PRODUCER              a hop over Kafka or Redis: the sending,
      broker_wait
      process topic  CONSUMER           the other service, linked to the sending
      transit, ...

A consumer's span is a child of the request, not of the sending: the conventions allow it (a custom creation context),
and Jaeger's critical path prunes a consumer below a producer with everything in it. Spans of tiles are inset by a
microsecond at each end, because Jaeger keeps microseconds and drops a sibling that ends where the next one begins; the
exact figure is an attribute.

Spans are built as protobuf messages, not through an SDK: a span costs a ninth so of what OpenTelemetry's takes
(`tests/benchmarks/bench_tracing.py`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from services.accounting import CPU_STAGES, GROUP_OF, UNKNOWN_CPU, Fact, Stage, Tile, total_ns
from services.messages import BatchDone, Finished
from services.tracing import conventions as names
from services.tracing.context import Context
from services.tracing.sampling import Decision

_BROKERS = ("kafka", "redis")

Value = str | int
Attributes = Mapping[str, Value]

INTERNAL = trace_pb2.Span.SPAN_KIND_INTERNAL
SERVER = trace_pb2.Span.SPAN_KIND_SERVER
CLIENT = trace_pb2.Span.SPAN_KIND_CLIENT
PRODUCER = trace_pb2.Span.SPAN_KIND_PRODUCER
CONSUMER = trace_pb2.Span.SPAN_KIND_CONSUMER

INSET_NS = 1000
_YEARS_NS = 10**18
_SAMPLED = 1  # the flag of W3C trace context

# What a place of the ledger is called as a service.
_SERVICES = {"client": "loadgen"}


class _Here(NamedTuple):
    """In whose span one is. `place`: of the ledger; `service`: whose process that is."""

    trace_id: bytes
    span_id: bytes
    place: str
    service: str
    state: str


class Spans:
    """Spans of many requests, grouped by service, until they are sent."""

    def __init__(self, version: str) -> None:
        self._version = version
        self.request = ExportTraceServiceRequest()
        self.count = 0
        self._scopes: dict[str, trace_pb2.ScopeSpans] = {}

    def add(
        self,
        service: str,
        what: bytes,
        context: Context,
        parent: bytes,
        begin: int,
        end: int,
        attributes: Attributes,
        links: Iterable[Context] = (),
    ) -> trace_pb2.Span:
        """One span; `what`: see `_what`. `parent`: its id, empty for a root. Times: ns since the epoch."""
        span = self._scope(service).spans.add(
            trace_id=context.trace_id,
            span_id=context.span_id,
            parent_span_id=parent,
            trace_state=context.state,
            start_time_unix_nano=begin,
            end_time_unix_nano=max(begin, end),
        )
        span.MergeFromString(what)
        _attributes(span.attributes, attributes)
        for link in links:
            span.links.add(trace_id=link.trace_id, span_id=link.span_id)
        self.count += 1
        return span

    def _scope(self, service: str) -> trace_pb2.ScopeSpans:
        scope = self._scopes.get(service)
        if scope is None:
            resource = self.request.resource_spans.add(schema_url=names.SCHEMA_URL)
            _attributes(
                resource.resource.attributes,
                {
                    names.SERVICE_NAME: service,
                    names.SERVICE_NAMESPACE: names.NAMESPACE,
                    names.SERVICE_VERSION: self._version,
                },
            )
            scope = resource.scope_spans.add(schema_url=names.SCHEMA_URL)
            scope.scope.name, scope.scope.version = names.SCOPE, self._version
            self._scopes[service] = scope
        return scope


@lru_cache(maxsize=1024)
def _what(name: str, kind: trace_pb2.Span.SpanKind.ValueType, stage: Stage | None = None) -> bytes:
    """What many spans have in common, encoded: read into one, it costs a fraction of being said again."""
    span = trace_pb2.Span(name=name, kind=kind, flags=_SAMPLED)
    if stage is not None:
        _attributes(span.attributes, {names.STAGE: stage.value, names.GROUP: GROUP_OF[stage].value})
    return bytes(span.SerializeToString())


def _attributes(target: object, attributes: Attributes) -> None:
    add = target.add  # type: ignore[attr-defined] # a repeated field of KeyValue
    for key, value in attributes.items():
        if isinstance(value, int):
            add(key=key).value.int_value = value
        else:
            add(key=key).value.string_value = value


def _new_trace_id() -> bytes:
    return (random.getrandbits(128) or 1).to_bytes(16, "big")


def _new_span_id() -> bytes:
    return (random.getrandbits(64) or 1).to_bytes(8, "big")


def batch_context(batch_id: int) -> Context:
    """Who a batch is in its own trace: made from its id, so that its members can link to it from anywhere."""
    name = batch_id.to_bytes(8, "big", signed=True)
    return Context(hashlib.blake2b(name, digest_size=16).digest(), hashlib.blake2b(name, digest_size=8).digest(), True)


class Root(NamedTuple):
    """Where a tree's root is. `above`: its parent's id, empty for a trace that begins here."""

    context: Context
    above: bytes = b""
    links: tuple[Context, ...] = ()


def root_of(parent: Context | None, decision: Decision) -> Root:
    """Of the tree of a request that came with `parent`."""
    if parent is not None and not decision.forced:
        return Root(Context(parent.trace_id, _new_span_id(), True, parent.state), parent.span_id)
    # Against its parent's decision there would be no parent to be found: a trace of its own, linked.
    return Root(Context(_new_trace_id(), _new_span_id(), True), links=() if parent is None else (parent,))


def add_request(
    spans: Spans,
    request: Finished,
    where: str,
    place: Root,
    decision: Decision,
    offset_ns: int,
) -> None:
    """The tree of one request, whose outermost process is `where`.

    `offset_ns`: from the ledger's clock to the epoch; one for the whole tree, so that it stays whole.
    """
    _check(request.tiles)
    root, above, links = place
    begin = request.start_ns + offset_ns
    end = begin + total_ns(request.tiles)
    service = _SERVICES.get(where, where)
    served = where != "client"
    attributes: dict[str, Value] = {
        names.REQUEST_ID: request.id,
        names.TASK: request.task,
        names.SAMPLED_BECAUSE: decision.because,
        names.DURATION: end - begin,
    }
    what = _what(f"infer {request.task}", INTERNAL)
    system, destination = request.source
    if served and system in _BROKERS:
        what = _what(f"process {destination}", CONSUMER)
        attributes |= _messaging(system, "process", destination)
        arrival = next((dict(tile.facts) for tile in request.tiles if tile.facts), {})
        if Fact.PARTITION in arrival:
            attributes |= _position(system, arrival[Fact.PARTITION], arrival[Fact.OFFSET])
    elif served:
        what = _what(names.INFER_METHOD, SERVER)
        attributes |= {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: names.INFER_METHOD}
    span = spans.add(
        service,
        what,
        root,
        above,
        begin,
        end,
        attributes,
        links,
    )
    if request.error is not None:
        span.status.code = trace_pb2.Status.STATUS_CODE_ERROR
        span.status.message = request.error
        _attributes(span.attributes, {names.ERROR_TYPE: request.error})
    _inside(spans, _Here(root.trace_id, root.span_id, where, service, root.state), begin, request.tiles)


def add_batch(spans: Spans, batch: BatchDone, members: Sequence[Context], offset_ns: int) -> None:
    """The trace of one batch, linked to the members that have traces of their own."""
    _check(batch.tiles)
    context = batch_context(batch.id)
    begin = batch.start_ns + offset_ns
    end = begin + total_ns(batch.tiles)
    attributes: dict[str, Value] = {
        names.MODEL: batch.model,
        names.OF_FACT[Fact.BATCH_SIZE]: batch.size,
        names.OF_FACT[Fact.BATCH_ID]: batch.id,
        names.DURATION: end - begin,
    }
    spans.add("inference", _what(f"batch {batch.model}", INTERNAL), context, b"", begin, end, attributes, members)
    here = _Here(context.trace_id, context.span_id, "inference", "inference", "")
    for tile in batch.tiles:
        begin = _tile(spans, here, begin, tile, linked=False)


def _check(tiles: Sequence[Tile]) -> None:
    """Before the first span: a tree is whole, or not there. Raises `ValueError` for times that no clock has."""
    if sum(abs(tile.duration_ns) for tile in tiles) > _YEARS_NS:
        raise ValueError("the ledger's times are longer than any request")


def _inside(spans: Spans, here: _Here, begin: int, tiles: Sequence[Tile]) -> None:
    """A span per tile of this place; what went elsewhere is a hop."""
    position, now = 0, begin
    while position < len(tiles):
        length = _hop_length(tiles[position:], here.place)
        if length:
            hop = tiles[position : position + length]
            _hop(spans, here, now, hop)
            now += total_ns(hop)
            position += length
        else:
            now = _tile(spans, here, now, tiles[position])
            position += 1


def _hop_length(tiles: Sequence[Tile], place: str) -> int:
    """How many tiles from the first on belong to one visit elsewhere: 0 where the first is this place's own."""
    outward = f"{place}>"
    if tiles[0].where == place or (">" in tiles[0].where and not tiles[0].where.startswith(outward)):
        return 0
    for index, tile in enumerate(tiles):
        if tile.where == place:
            return index
        if tile.where.startswith(outward) and any(fact is Fact.SYSTEM for fact, _ in tile.facts):
            # The remainder of the call, which knows the route; after it only what the answer waited.
            after = tiles[index + 1 : index + 2]
            return index + 1 + sum(t.stage is Stage.BROKER_WAIT and t.where == tile.where for t in after)
    return len(tiles)


def _hop(spans: Spans, here: _Here, begin: int, tiles: Sequence[Tile]) -> None:
    """One visit elsewhere, by whatever carried it."""
    outward = f"{here.place}>"
    inner = [i for i, tile in enumerate(tiles) if not tile.where.startswith(outward)]
    route = next((dict(t.facts) for t in tiles if t.where.startswith(outward) and t.facts), {})
    system = str(route.get(Fact.SYSTEM, ""))
    end = begin + total_ns(tiles)
    outer = here
    link: Context | None = None
    destination = str(route.get(Fact.DESTINATION, ""))
    if system == "grpc":
        attributes: dict[str, Value] = {
            names.RPC_SYSTEM: "grpc",
            names.RPC_METHOD: names.INFER_METHOD,
            **_address(destination),
            names.DURATION: end - begin,
        }
        outer = _enter(spans, here, names.INFER_METHOD, CLIENT, begin, end, attributes)
    elif system in _BROKERS:
        published = int(route.get(Fact.PUBLISH_NS, 0))
        attributes = {
            **_messaging(system, "send", destination),
            names.BODY_SIZE: route.get(Fact.REQUEST_BYTES, 0),
            names.DURATION: published,
        }
        sent = _enter(
            spans, here, f"send {destination}", PRODUCER, begin, begin + max(published, 2 * INSET_NS), attributes
        )
        link = Context(sent.trace_id, sent.span_id, True)
    now = begin
    position = 0
    while position < len(tiles):
        if inner and position == inner[0]:
            theirs = tiles[inner[0] : inner[-1] + 1]
            length = total_ns(theirs)
            _visit(spans, outer, now, now + length, theirs, system, destination, route.get(Fact.REQUEST_BYTES, 0), link)
            now += length
            position = inner[-1] + 1
        else:
            now = _tile(spans, outer, now, tiles[position])
            position += 1


def _visit(
    spans: Spans,
    here: _Here,
    begin: int,
    end: int,
    tiles: Sequence[Tile],
    system: str,
    destination: str,
    size: int | str,
    link: Context | None,
) -> None:
    """The other service's own time. Without a hop it is another part of this process."""
    place = tiles[0].where.rpartition(">")[2]
    service = _SERVICES.get(place, place)
    attributes: dict[str, Value] = {names.DURATION: end - begin}
    if system == "grpc":
        name, kind = names.INFER_METHOD, SERVER
        attributes |= {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: names.INFER_METHOD}
    elif system in _BROKERS:
        name, kind = f"process {destination}", CONSUMER
        arrival = next((dict(tile.facts) for tile in tiles if tile.facts), {})
        attributes |= _messaging(system, "process", destination)
        if Fact.PARTITION in arrival:
            attributes |= _position(system, arrival[Fact.PARTITION], arrival[Fact.OFFSET])
        if size:
            attributes[names.BODY_SIZE] = size
    elif system:
        name, kind = f"serve {place}", SERVER
    else:
        name, kind, service = place, INTERNAL, here.service
    inside = _enter(spans, here, name, kind, begin, end, attributes, place, service, link)
    _inside(spans, inside, begin, tiles)


def _enter(
    spans: Spans,
    here: _Here,
    name: str,
    kind: trace_pb2.Span.SpanKind.ValueType,
    begin: int,
    end: int,
    attributes: Attributes,
    place: str = "",
    service: str = "",
    link: Context | None = None,
) -> _Here:
    """A span that has others in it."""
    inside = here._replace(span_id=_new_span_id(), place=place or here.place, service=service or here.service)
    begin, end = _inset(begin, end)
    context = Context(inside.trace_id, inside.span_id, True, inside.state)
    links = (link,) if link is not None else ()
    spans.add(inside.service, _what(name, kind), context, here.span_id, begin, end, attributes, links)
    return inside


def _tile(spans: Spans, here: _Here, begin: int, tile: Tile, *, linked: bool = True) -> int:
    """One tile; returns its end."""
    stage = tile.stage
    attributes: dict[str, Value] = {names.DURATION: tile.duration_ns}
    if tile.cpu_ns != UNKNOWN_CPU and stage in CPU_STAGES:
        attributes[names.CPU_TIME] = tile.cpu_ns
    links = []
    for fact, value in tile.facts:
        if fact in names.OF_FACT:
            attributes[names.OF_FACT[fact]] = value
        if fact is Fact.BATCH_ID and linked:
            links.append(batch_context(int(value)))
    end = begin + tile.duration_ns
    context = Context(here.trace_id, _new_span_id(), True, here.state)
    # A slightly negative remainder is in the attribute; as a span it has no length.
    shown = _inset(begin, max(begin, end))
    spans.add(here.service, _what(stage, INTERNAL, stage), context, here.span_id, *shown, attributes, links)
    return end


def _inset(begin: int, end: int) -> tuple[int, int]:
    """By a microsecond at each end, to whole ones; what is too short for that is a point in its middle.

    Jaeger cuts beginning and duration to microseconds, each: an end would come out one early or late.
    """
    inner = -(-(begin + INSET_NS) // 1000) * 1000, (end - INSET_NS) // 1000 * 1000
    if inner[1] > inner[0]:
        return inner
    return (begin + end) // 2, (begin + end) // 2


def _messaging(system: str, operation: str, destination: str) -> dict[str, Value]:
    return {
        names.MESSAGING_SYSTEM: system,
        names.OPERATION_NAME: operation,
        names.OPERATION_TYPE: operation,
        names.MESSAGING_DESTINATION: destination,
    }


def _position(system: str, partition: Value, offset: Value) -> dict[str, Value]:
    if system == "kafka":
        return {names.MESSAGING_PARTITION: str(partition), names.KAFKA_OFFSET: offset}
    return {names.MESSAGE_ID: f"{partition}-{offset}"}  # of an entry of a stream


def _address(host_port: str) -> dict[str, Value]:
    host, _, port = host_port.rpartition(":")
    return {names.SERVER_ADDRESS: host, names.SERVER_PORT: int(port)} if host and port.isdigit() else {}
