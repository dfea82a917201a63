"""Counts and buckets of one service, and the table of everything that it measures. Pure standard library.

A request costs its path one bisection and two integer additions per tile of its ledger, into buckets that are there
(docs/adr/0007: an OpenTelemetry `record` costs 20 to 40 times as much). All else is read from where it is known anyway,
when somebody scrapes. `prometheus.py` turns what `Metrics.collect` gives into an exposition.

Label values are bounded whatever comes in: tasks and models are those that are configured, places and kinds of errors
those that this code knows, everything else is one value, `unknown` or `other`.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from services.accounting import Stage, Tile

_log = logging.getLogger(__name__)

# Of durations, in ns: fine below 5 ms, where hops are.
BOUNDS_NS = (
    *(10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 7_500_000),
    *(10_000_000, 25_000_000, 50_000_000, 100_000_000, 250_000_000, 500_000_000),
    *(1_000_000_000, 2_500_000_000, 5_000_000_000, 10_000_000_000),
)
# Of a request's message, in bytes; the last is what a link carries, and the label of what is beyond it, too.
PAYLOADS = {
    16 << 10: "16KiB",
    64 << 10: "64KiB",
    256 << 10: "256KiB",
    1 << 20: "1MiB",
    4 << 20: "4MiB",
    16 << 20: "16MiB",
}
_PAYLOAD_BOUNDS = tuple(PAYLOADS)[:-1]
_PAYLOAD_NAMES = tuple(PAYLOADS.values())
# Of a batch, in requests.
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)

PLACES = frozenset({"client", "preprocess", "inference", "client>preprocess", "preprocess>inference"})
OTHER = "other"
UNKNOWN = "unknown"
PROBE = "probe"
OK = "ok"


class Metric(NamedTuple):
    """A row of docs/metrics.md. `unit`: of the value, "" for a plain number."""

    name: str
    kind: str  # histogram, counter, gauge
    unit: str
    labels: tuple[str, ...]
    meaning: str


_WHOSE = ("service", "task", "transport")

STAGE_DURATION = Metric(
    "beyond_stage_duration_seconds",
    "histogram",
    "seconds",
    ("service", "stage", "where", "transport", "task", "payload"),
    "Time of a request in a stage, from its ledger. `service` holds the ledger: the door's is of the whole request and "
    "its shares add up, the inference service's is of its own part of the same time, so never add the two. `where`: a "
    "service, or a hop `caller>callee`. `transport`: of the hop to inference. `payload`: the least size that the "
    "request's message fits. Of several images, the one that was waited for. A bucket shows the trace id of a "
    "request that has spans.",
)
STAGE_NEGATIVE = Metric(
    "beyond_stage_negative_seconds",
    "counter",
    "seconds",
    STAGE_DURATION.labels,
    "What remainders were below zero (clock slew), as a positive number. It is in no sum of the histogram, whose sum "
    "may not fall; exactly, a stage took the histogram's sum less this.",
)
REQUESTS = Metric(
    "beyond_requests",
    "counter",
    "",
    (*_WHOSE, "outcome"),
    "Requests that are over. `outcome`: ok, or the error's kind (overloaded, deadline_exceeded, invalid_input, ...). "
    "`task`: unknown for what is none here, probe for a calibration's request.",
)
RPC_DURATION = Metric(
    "rpc_server_call_duration_seconds",
    "histogram",
    "seconds",
    ("rpc_system_name", "rpc_method", "rpc_response_status_code"),
    "OpenTelemetry's rpc.server.call.duration: from when gRPC has the call until its answer is handed to gRPC.",
)
PROCESS_DURATION = Metric(
    "messaging_process_duration_seconds",
    "histogram",
    "seconds",
    (
        "messaging_system",
        "messaging_operation_name",
        "messaging_destination_name",
        "messaging_consumer_group_name",
        "error_type",
    ),
    "OpenTelemetry's messaging.process.duration: from when a worker takes a record until its answer is ready to be "
    "sent. `error_type`: empty where there was none.",
)
HOP_BYTES = Metric(
    "beyond_hop_bytes",
    "counter",
    "bytes",
    ("service", "hop", "transport", "direction"),
    "Payloads that this service sent over a hop or received, without headers. What failed has no reply to count.",
)
ADMISSION_USED = Metric("beyond_admission_used", "gauge", "", (), "Requests inside the door.")
ADMISSION_LIMIT = Metric("beyond_admission_limit", "gauge", "", (), "Requests that may be inside; more are refused.")
_QUEUE = ("queue", "model")
QUEUE_DEPTH = Metric(
    "beyond_queue_depth",
    "gauge",
    "",
    _QUEUE,
    "What waits, and nobody has taken. `queue`: preprocess, whose `model` is empty, or inference.",
)
QUEUE_CAPACITY = Metric("beyond_queue_capacity", "gauge", "", _QUEUE, "What may wait; more is refused.")
QUEUE_IN_WORK = Metric("beyond_queue_in_work", "gauge", "", _QUEUE, "What was taken, and is not finished.")
QUEUE_WORKERS = Metric("beyond_queue_workers", "gauge", "", _QUEUE, "Threads that take from it.")
QUEUE_REFUSALS = Metric("beyond_queue_refusals", "counter", "", _QUEUE, "Refused because the queue was full.")
BUDGET_DROPS = Metric(
    "beyond_budget_drops",
    "counter",
    "",
    ("place",),
    "Dropped unprocessed because their caller's time was spent. `place`: arrival, or the queue in which it ran out.",
)
BATCH_SIZE = Metric("beyond_batch_size", "histogram", "", _QUEUE, "Requests per batch that was processed.")
LINK_IN_FLIGHT = Metric("beyond_link_in_flight", "gauge", "", ("model", "transport"), "Calls sent and not ended.")
LINK_LATE = Metric(
    "beyond_link_late_replies", "counter", "", ("model", "transport"), "Replies to calls that had ended: given up."
)
LINK_DUPLICATES = Metric(
    "beyond_link_duplicate_replies", "counter", "", ("model", "transport"), "Second replies: the first one won."
)
LISTENER_IN_HAND = Metric(
    "beyond_listener_in_hand", "gauge", "", ("transport",), "Calls or records taken in and not answered."
)
CONSUMER_LAG = Metric(
    "beyond_consumer_lag_records",
    "gauge",
    "records",
    ("topic", "group", "partition"),
    "Records of a partition that this consumer holds from the lowest that is not answered to the partition's end, as "
    "the broker says when scraped. Absent while the broker is away. Over Redis all listeners tell of the one stream: "
    "take the largest, not the sum.",
)
DEAD_LETTERS = Metric("beyond_dead_letters", "counter", "", ("topic",), "Records of a topic that were put aside.")
DELETED = Metric(
    "beyond_deleted_records",
    "counter",
    "",
    ("topic",),
    "Records of a topic that the broker deleted before they were answered: they waited longer than it keeps them.",
)
SPANS_SENT = Metric("beyond_spans_sent", "counter", "", (), "Spans that their destination took.")
SPANS_LOST = Metric("beyond_spans_lost", "counter", "", (), "Spans that were made and not delivered.")
SPANS_LOST_REQUESTS = Metric(
    "beyond_spans_lost_requests", "counter", "", (), "Requests that were to have spans and have none: no room."
)
SPANS_WAITING = Metric(
    "beyond_spans_waiting",
    "gauge",
    "",
    (),
    "Requests and batches whose spans are neither sent nor lost: when it is 0, the counts above are of all.",
)
SERVICE_INFO = Metric("beyond_service_info", "gauge", "", ("service", "version"), "1; what answers here.")

ALL = (
    *(STAGE_DURATION, STAGE_NEGATIVE, REQUESTS, RPC_DURATION, PROCESS_DURATION, HOP_BYTES),
    *(ADMISSION_USED, ADMISSION_LIMIT),
    *(QUEUE_DEPTH, QUEUE_CAPACITY, QUEUE_IN_WORK, QUEUE_WORKERS, QUEUE_REFUSALS, BUDGET_DROPS, BATCH_SIZE),
    *(LINK_IN_FLIGHT, LINK_LATE, LINK_DUPLICATES, LISTENER_IN_HAND, CONSUMER_LAG, DEAD_LETTERS, DELETED),
    *(SPANS_SENT, SPANS_LOST, SPANS_LOST_REQUESTS, SPANS_WAITING, SERVICE_INFO),
)


class Exemplar(NamedTuple):
    """A request that fell into a bucket. `at_s`: since the epoch."""

    trace_id: str
    ns: int
    at_s: float


Labels = tuple[str, ...]  # values, in the order of the metric's labels


class Number(NamedTuple):
    """A counter's or gauge's value."""

    labels: Labels
    value: float


class Distribution(NamedTuple):
    """A histogram's. `counts`: per bucket, not summed up; one more than bounds. `exemplars`: by index of a bucket."""

    labels: Labels
    bounds: tuple[int, ...]
    counts: tuple[int, ...]
    total: int
    exemplars: Mapping[int, Exemplar]


class Family(NamedTuple):
    """A metric, as it stands."""

    metric: Metric
    samples: Sequence[Number | Distribution]


Key = TypeVar("Key")
Value = TypeVar("Value")
Read = Callable[[], Mapping[Labels, float]]
Sizes = Callable[[], Mapping[int, int]]


class _Buckets:
    """Durations, in preallocated integers; guarded by its owner's lock."""

    __slots__ = ("counts", "exemplars", "negative_ns", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.sum_ns = 0
        self.negative_ns = 0
        self.exemplars: dict[int, Exemplar] = {}

    def read(self, labels: Labels, total: int) -> Distribution:
        return Distribution(labels, BOUNDS_NS, tuple(self.counts), total, dict(self.exemplars))


_Rows = dict[tuple[Stage, str], _Buckets]


class Metrics:
    """Of one service. `request`, `call` and `processed` are called from any thread, `collect` by who scrapes.

    One lock, held for microseconds: by a request to add its tiles, by a scrape to copy integers.
    """

    def __init__(
        self,
        service: str,
        kinds: Iterable[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`kinds`: of errors. `clock`: seconds since the epoch."""
        self.service = service
        self._transports: dict[str, str] = {}
        self._outcomes = frozenset({OK, *kinds})
        self._clock = clock
        self._lock = threading.Lock()
        self._stages: dict[tuple[str, str, int], _Rows] = {}
        self._requests: Counter[Labels] = Counter()
        self._bytes: Counter[Labels] = Counter()
        self._calls: dict[Labels, _Buckets] = {}
        self._processed: dict[Labels, _Buckets] = {}
        self._late_arrivals = 0
        self._reads: list[tuple[Metric, Read]] = []
        self._sizes: list[tuple[Metric, Labels, Sizes]] = []

    def add_task(self, task: str, transport: str = "") -> None:
        """A task that there is. `transport`: to inference; "" where that is how requests come."""
        self._transports[task] = transport

    # --- on the path of a request ------------------------------------------------------------------------------------

    def request(
        self,
        task: str,
        tiles: Sequence[Tile],
        *,
        hop: str,
        via: str,
        received_bytes: int,
        sent_bytes: int,
        error: str | None = None,
        trace_id: str | None = None,
        probe: bool = False,
        dropped: bool = False,
    ) -> None:
        """A request that came over `hop` by the transport `via` is over.

        `error`: its kind. `trace_id`: where its spans are, in hexadecimal. `probe`: a calibration's. `dropped`: at its
        arrival, because it was late.
        """
        link = self._transports.get(task)
        if link is None:
            task, link = UNKNOWN, "none"
        elif probe:
            task = PROBE
        link = link or via
        outcome = OK if error is None else error if error in self._outcomes else OTHER
        now = 0.0 if trace_id is None else self._clock()
        kind = (task, link, bisect_left(_PAYLOAD_BOUNDS, received_bytes))
        with self._lock:
            rows = self._stages.get(kind)
            if rows is None:
                rows = self._stages[kind] = {}
            for stage, ns, _, where, _ in tiles:
                row = rows.get((stage, where)) or _row(rows, stage, where)
                index = bisect_left(BOUNDS_NS, ns)
                row.counts[index] += 1
                row.sum_ns += ns
                if ns < 0:
                    row.negative_ns -= ns
                if trace_id is not None:
                    row.exemplars[index] = Exemplar(trace_id, ns, now)
            self._requests[task, link, outcome] += 1
            self._bytes[hop, via, "received"] += received_bytes
            self._bytes[hop, via, "sent"] += sent_bytes
            self._late_arrivals += dropped

    def call(self, method: str, status: str, ns: int) -> None:
        """A gRPC call was answered with `status` after `ns`. `method`: one that the server has, pkg.Service/Name."""
        self._time(self._calls, ("grpc", method, status), ns)

    def processed(self, system: str, topic: str, group: str, error: str | None, ns: int) -> None:
        """A record was worked on for `ns`."""
        kind = "" if error is None else error if error in self._outcomes else OTHER
        self._time(self._processed, (system, "process", topic, group, kind), ns)

    def _time(self, table: dict[Labels, _Buckets], labels: Labels, ns: int) -> None:
        with self._lock:
            row = table.get(labels)
            if row is None:
                row = table[labels] = _Buckets()
            row.counts[bisect_left(BOUNDS_NS, ns)] += 1
            row.sum_ns += ns

    # --- what is known elsewhere -------------------------------------------------------------------------------------

    def watch(self, metric: Metric, read: Read) -> None:
        """Read `metric` when scraped; what `read` raises leaves it out, this time."""
        self._reads.append((metric, read))

    def watch_sizes(self, metric: Metric, labels: Labels, read: Sizes) -> None:
        """As `watch`; `read` gives how often there was which size."""
        self._sizes.append((metric, labels, read))

    # --- for who scrapes ---------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Family]:
        """Every metric of the table that has a value, in the table's order."""
        found: dict[Metric, list[Number | Distribution]] = {metric: [] for metric in ALL}
        # Several parts may tell of the same labels: together, then.
        numbers: dict[Metric, Counter[Labels]] = {metric: Counter() for metric in ALL}
        with self._lock:
            kinds = list(self._stages.items())
        for (task, link, size), rows in kinds:
            with self._lock:  # anew for each: requests must not wait for all of them
                for (stage, where), row in rows.items():
                    key: Labels = (self.service, stage.value, where, link, task, _PAYLOAD_NAMES[size])
                    # Without what was below zero: a sum that falls would count as a counter that began anew.
                    found[STAGE_DURATION].append(row.read(key, row.sum_ns + row.negative_ns))
                    if row.negative_ns:
                        found[STAGE_NEGATIVE].append(Number(key, row.negative_ns / 1e9))
        with self._lock:
            found[RPC_DURATION] += [row.read(labels, row.sum_ns) for labels, row in self._calls.items()]
            found[PROCESS_DURATION] += [row.read(labels, row.sum_ns) for labels, row in self._processed.items()]
            for metric, counted in ((REQUESTS, self._requests), (HOP_BYTES, self._bytes)):
                numbers[metric].update({(self.service, *labels): n for labels, n in counted.items()})
            numbers[BUDGET_DROPS]["arrival",] += self._late_arrivals
        for metric, read in self._reads:
            for labels, value in _tried(metric, read).items():
                numbers[metric][labels] += value  # type: ignore[assignment] # a Counter of floats
        for metric, labels, sizes in self._sizes:
            found[metric].append(_distribution(labels, _tried(metric, sizes)))
        for metric, samples in found.items():
            samples += [Number(labels, value) for labels, value in numbers[metric].items()]
            if samples:
                yield Family(metric, samples)


def _row(rows: _Rows, stage: Stage, where: str) -> _Buckets:
    """The row of a tile; of all places that a stranger's ledger makes up together."""
    key = (stage, where if where in PLACES else OTHER)
    row = rows.get(key)
    if row is None:
        row = rows[key] = _Buckets()
    return row


def _tried(metric: Metric, read: Callable[[], Mapping[Key, Value]]) -> Mapping[Key, Value]:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 # one that cannot be read must not cost all others
        _log.warning("metric %s cannot be read: %s", metric.name, error)
        return {}


def _distribution(labels: Labels, sizes: Mapping[int, int]) -> Distribution:
    counts = [0] * (len(BATCHES) + 1)
    for size, times in sizes.items():
        counts[bisect_left(BATCHES, size)] += times
    return Distribution(labels, BATCHES, tuple(counts), sum(size * times for size, times in sizes.items()), {})


def table() -> str:
    """`ALL`, in Markdown: docs/metrics.md's table."""
    lines = ["| name | type | unit | labels | meaning |", "| --- | --- | --- | --- | --- |"]
    for metric in ALL:
        name = f"`{metric.name}_total`" if metric.kind == "counter" else f"`{metric.name}`"
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        lines.append(f"| {name} | {metric.kind} | {metric.unit or 'count'} | {labels} | {metric.meaning} |")
    return "\n".join(lines) + "\n"


_TABLE = re.compile(r"^\| name \|.*?(?=^(?!\|)|\Z)", re.DOTALL | re.MULTILINE)


def refresh(page: str) -> str:
    """A Markdown page with its table made anew."""
    return _TABLE.sub(lambda _: table(), page)


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 well, 1 a page cannot be made anew, with the reason on stderr, 2 a wrong question."""
    parser = argparse.ArgumentParser(
        prog="python -m services.metrics",
        description="Everything that the services measure, as a table in Markdown, made from this module. Without a "
        "page it is printed; in a page that has such a table (docs/metrics.md) it is made anew. To read the metrics "
        "of a service that runs, start it with --metrics host:port and ask http://host:port/metrics.",
    )
    parser.add_argument("page", nargs="*", type=Path, help="a Markdown page whose table is to be made anew")
    pages = parser.parse_args(argv).page
    if not pages:
        sys.stdout.write(table())
    for page in pages:
        try:
            text = page.read_text(encoding="utf-8")
            if _TABLE.search(text) is None:
                sys.stderr.write(f"{page} has no table of metrics; put one there whose first line begins '| name |'\n")
                return 1
            page.write_text(refresh(text), encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            sys.stderr.write(f"{page} cannot be made anew: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
