"""What accounting costs: the ledger, metrics, and the spans made from it.

Thread CPU, in alternation, the best of many rounds: what else runs on the machine can only add.

    .venv/bin/python -m tests.benchmarks.bench_tracing

* A link: one request after the other through the real ends of a link, over memory on one thread, to a model that
  computes nothing; every second one with null timelines, whose boundaries are nothing. Then with metrics at the callee.
* A walk: the boundaries of a request over Kafka in its three processes, and its ledgers over both hops.
* A span: as an OTLP message (ours), and as OpenTelemetry's SDK and exporter would make and encode it (where installed).
* A traced request: choosing it (on its path) and making its tree (on a thread of its own), and what that is per request
  at a sampling ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from services import link, watching, wire
from services.accounting import Clock, Fact, Facts, Mark, Stage, Tile, Timeline, monotonic_ns, total_ns
from services.link import Remote, expose
from services.messages import Finished, Outcome, TensorSpec, Work
from services.tracing.context import parse, sampled
from services.tracing.sampling import Decision, Sampler
from services.tracing.tree import Root, Spans, add_request
from services.transports.transport import Delivery, Handle, Reply
from tests.unit.test_tracing import KAFKA, client, door

ROUNDS = 15
SPANS_OF_SDK = 200


def cpu_us(what: Callable[[], object], times: int) -> float:
    """Of one call, on this thread."""
    begin = time.thread_time_ns()
    for _ in range(times):
        what()
    return (time.thread_time_ns() - begin) / times / 1e3


class NullTimeline(Timeline):
    """Draws no boundaries: what is left is the rest of the work."""

    def __init__(self, where: str, start_ns: int | None = None, clock: Clock = monotonic_ns) -> None:
        self.where = where
        self.tiles = []
        self._clock = clock
        # The law needs no other clock, but a link's headers want the stamp of its sending.
        self.start_ns = self.last_ns = clock() if start_ns is None else start_ns

    def cut(self, stage: Stage, *, on_device: bool = False) -> int:  # as a timeline has it
        return self.last_ns

    def cut_at(self, stage: Stage, boundary_ns: int, where: str | None = None) -> None:
        pass

    def cut_to(self, stage: Stage, mark: Mark) -> None:
        pass

    def mark(self) -> Mark:
        return _NO_MARK

    def resume(self) -> None:
        pass

    def call(
        self,
        tiles: Iterable[Tile],
        remainder: Stage,
        end_ns: int | None = None,
        where: str | None = None,
        facts: Facts = (),
    ) -> int:
        return 0

    def state(self, *facts: tuple[Fact, int | str]) -> None:
        pass


_NO_MARK = Mark(0, 0, 0)


class Inline:
    """A transport on one thread: hands over, and has the answer. See `Transport`."""

    brokered = False
    system = "memory"
    destination = "inline"

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def request(self, payload: bytes, headers: Mapping[str, bytes], timeout: float) -> Future[Reply]:
        """See `Transport.request`."""
        now = monotonic_ns()
        answer = self._handle(Delivery(payload, headers, now, now, now, timeout=timeout)).result()
        reply: Future[Reply] = Future()
        reply.set_result(Reply(answer.payload, answer.headers, monotonic_ns()))
        return reply

    def healthy(self) -> bool:
        """See `Transport.healthy`."""
        return True

    def counters(self) -> Mapping[str, int]:
        """See `Transport.counters`."""
        return {}

    def close(self) -> None:
        """See `Transport.close`."""


def model(work: Work) -> Future[Outcome]:
    """As the engine draws its boundaries, on one thread, for nothing."""
    timeline = link.Timeline("inference", monotonic_ns())
    timeline.cut_at(Stage.INFERENCE_QUEUE, monotonic_ns())
    device = link.Timeline("inference")
    for stage in (Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD):
        device.cut(stage)
    timeline.tiles.extend(device.tiles)
    timeline.last_ns = device.last_ns
    timeline.cut(Stage.REPLY_QUEUE)
    outcome: Future[Outcome] = Future()
    outcome.set_result(Outcome(_NOTHING, tuple(timeline.tiles)))
    return outcome


_NOTHING = {"y": np.zeros((1, 4), dtype=np.float32)}
_TENSOR = np.zeros((1, 4), dtype=np.float32)


def a_link(times: int) -> dict[str, float]:
    """us of a request: without a ledger, with one, and with metrics of the callee, too; in turn, on one thread."""
    metrics = watching.new_metrics("inference")
    metrics.add_task("classification", "memory")
    outputs = (TensorSpec("y", "float32", (-1, 4)),)
    count = watching.at_the_engine(metrics, "m", "classification", "memory://inline")
    plain = Remote(Inline(expose(model, outputs)))
    counted = Remote(Inline(expose(model, outputs, answered=count)))
    kinds = {"without": (plain, NullTimeline), "ledger": (plain, Timeline), "ledger and metrics": (counted, Timeline)}
    best = dict.fromkeys(kinds, float("inf"))
    try:
        for _ in range(ROUNDS):
            spent = dict.fromkeys(kinds, 0)
            for _ in range(times):
                for name, (remote, kind) in kinds.items():
                    link.Timeline = kind  # type: ignore[misc] # the toggle
                    work = Work("1", "m", _TENSOR, monotonic_ns() + 10**10)
                    begin = time.thread_time_ns()
                    done = remote.submit(work)
                    spent[name] += time.thread_time_ns() - begin
                    done.result(0)
            for name, ns in spent.items():
                best[name] = min(best[name], ns / times / 1e3)
    finally:
        link.Timeline = Timeline  # type: ignore[misc] # as it was
    return best


# The boundaries of one request over Kafka in its three processes, in order; as the code draws them.
_CLIENT = (Stage.SCHEDULE_LAG, Stage.SERIALIZE)
_DOOR = (
    Stage.DESERIALIZE,
    Stage.PREPROCESS_QUEUE,
    Stage.DECODE,
    Stage.RESIZE,
    Stage.NORMALIZE,
    Stage.DISPATCH,
    Stage.SERIALIZE,
)
_ENGINE = (
    Stage.DESERIALIZE,
    Stage.INFERENCE_QUEUE,
    Stage.UPLOAD,
    Stage.INFER,
    Stage.DOWNLOAD,
    Stage.REPLY_QUEUE,
    Stage.SERIALIZE,
)


def walk(kind: type[Timeline], *, ledgers: bool) -> None:
    """All boundaries of a request, and its ledgers there and back: at the engine's hop, and in the door's answer."""
    engine = kind("inference")
    engine.cut_at(Stage.ADMISSION, engine.start_ns)
    for stage in _ENGINE:
        engine.cut(stage)
    inner = wire.encode_ledger(engine.tiles) if ledgers else b""
    doors = kind("preprocess")
    doors.cut_at(Stage.ADMISSION, doors.start_ns)
    for stage in _DOOR:
        doors.cut(stage)
    if ledgers:
        doors.call(wire.decode_ledger(inner), Stage.TRANSIT, where="preprocess>inference")
        doors.state((Fact.SYSTEM, "kafka"), (Fact.DESTINATION, "work"), (Fact.REQUEST_BYTES, 1), (Fact.REPLY_BYTES, 1))
    for stage in (Stage.DISPATCH, Stage.DESERIALIZE, Stage.INTERPRET, Stage.SERIALIZE):
        doors.cut(stage)
    outer = wire.encode_ledger(doors.tiles) if ledgers else b""
    clients = kind("client")
    for stage in _CLIENT:
        clients.cut(stage)
    if ledgers:
        clients.call(wire.decode_ledger(outer), Stage.TRANSIT, where="client>preprocess")
    clients.cut(Stage.DESERIALIZE)


def ledger(times: int) -> dict[str, float]:
    """us per request: with, without, and boundaries alone."""
    rounds: dict[str, list[float]] = {"with": [], "boundaries only": [], "without": []}
    for _ in range(ROUNDS):
        rounds["with"].append(cpu_us(lambda: walk(Timeline, ledgers=True), times))
        rounds["boundaries only"].append(cpu_us(lambda: walk(Timeline, ledgers=False), times))
        rounds["without"].append(cpu_us(lambda: walk(NullTimeline, ledgers=False), times))
    return {name: min(values) for name, values in rounds.items()}


def sdk_span_us() -> float | None:
    """Made and encoded by OpenTelemetry's own; None where that is not installed."""
    try:
        from opentelemetry import trace  # not a dependency of ours
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
    except ImportError:
        return None

    class Encoding(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Encoding()))
    tracer = provider.get_tracer("bench")
    attributes = {
        "beyond.stage": "decode",
        "beyond.group": "preprocessing",
        "beyond.duration_ns": 5,
        "beyond.cpu_ns": 4,
    }

    def one() -> None:
        tracer.start_span("decode", trace.Context() if hasattr(trace, "Context") else None, attributes=attributes).end()

    return min(cpu_us(one, SPANS_OF_SDK) for _ in range(ROUNDS))


def sdk_record_us() -> float | None:
    """OpenTelemetry's `Histogram.record`: a ruler that others have, to lay beside the figures of another machine."""
    try:
        from opentelemetry.sdk.metrics import MeterProvider  # not a dependency of ours
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    except ImportError:
        return None
    provider = MeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    histogram = provider.get_meter("bench").create_histogram("duration")
    attributes = {"stage": "decode", "transport": "kafka", "task": "classification", "payload": "256KiB"}
    return min(cpu_us(lambda: histogram.record(1.5, attributes), SPANS_OF_SDK) for _ in range(ROUNDS))


def spans(times: int, ratio: float) -> dict[str, float]:
    """us: of choosing, of a whole tree, of one span, and on average at `ratio`."""
    tiles = client(door(KAFKA, waits=True))
    request = Finished("id", "classification", monotonic_ns(), tiles, {}, None)
    unsampled = {"traceparent": b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-00"}
    from_client = parse({"traceparent": b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"})
    assert from_client is not None  # it is well-formed
    sampler = Sampler(ratio, lambda: 1.0, forced_per_s=0)
    counted = Spans("1")
    add_request(counted, request, "client", Root(from_client), Decision("parent", forced=False), 0)

    def many() -> None:
        batch = Spans("1")
        for _ in range(20):
            add_request(batch, request, "client", Root(from_client), Decision("parent", forced=False), 0)
        batch.request.SerializeToString()

    def choose() -> None:
        sampler.decide(sampled(unsampled), total_ns(tiles), failed=False)

    tree = min(cpu_us(many, max(1, times // 200)) / 20 for _ in range(ROUNDS))
    chosen = min(cpu_us(choose, times) for _ in range(ROUNDS))
    return {
        "choosing": chosen,
        "tree": tree,
        "spans of a tree": counted.count,
        "span": tree / counted.count,
        "on average": chosen + ratio * tree,
    }


def main() -> None:
    """Print, and write where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=2000, help="calls in a round (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.01, help="sampling ratio (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    of_link = a_link(arguments.times)
    of_ledger = ledger(arguments.times)
    of_spans = spans(arguments.times, arguments.ratio)
    sdk, record = sdk_span_us(), sdk_record_us()
    tile_count = len(client(door(KAFKA, waits=True)))
    net = of_ledger["with"] - of_ledger["without"]
    lines = [
        f"ledger of a request over one link, one thread: {of_link['ledger'] - of_link['without']:.1f} us of CPU",
        f"  beside {of_link['without']:.0f} us for the rest",
        f"  with metrics of the callee: {of_link['ledger and metrics'] - of_link['without']:.1f} us",
        f"ledger of a request through three processes: {net:.1f} us of CPU in all",
        f"  boundaries {of_ledger['boundaries only'] - of_ledger['without']:.1f} us, the rest crosses two hops",
        f"choosing a request for spans, or not: {of_spans['choosing']:.2f} us",
        f"a tree of {of_spans['spans of a tree']:.0f} spans ({tile_count} tiles): {of_spans['tree']:.0f} us",
        f"  {of_spans['span']:.1f} us a span" + (f"; OpenTelemetry's SDK: {sdk:.1f} us" if sdk is not None else ""),
        f"per request at {arguments.ratio:.0%} sampling: {of_spans['on average']:.2f} us",
    ]
    if record is not None:
        lines.append(f"a ruler: one OpenTelemetry Histogram.record takes {record:.1f} us here")
    print("\n".join(lines))  # noqa: T201
    if arguments.out is not None:
        figures = {
            "link_us": of_link,
            "walk_us": of_ledger,
            "spans_us": of_spans,
            "sdk_span_us": sdk,
            "sdk_record_us": record,
            "machine": platform.processor(),
        }
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
