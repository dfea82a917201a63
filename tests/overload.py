"""More than a door can answer, from an open loop: does every request still have its ledger, and every trace its spans?

`flood` starts a real suite, whose model takes no time, asks it for several times what it answers, most of it with
patience and some of it with very little, and brings back what each side says: the client's exchanges, the door's own
counts, and the span trees that the door wrote.
"""

from __future__ import annotations

import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from loadgen.quiet import without_collector
from loadgen.runner import Run
from loadgen.samples import make
from loadgen.schedule import parse_schedule
from loadgen.target import HOP, WHERE, Exchange, OipTarget, image_tensor
from services.accounting import Stage, Tile
from services.local.deployments import Options
from services.local.ports import free_ports
from services.local.stack import Stack
from services.messages import Array
from services.tracing.conventions import DURATION, REQUEST_ID
from tests.unit.test_tracing import Span, read

# Inside the door at once: a fraction of what is under way.
ADMISSION = 6
PATIENT_S, HASTY_S = 30.0, 0.1
# Every so many requests one is hasty.
HASTY_EVERY = 4
_SETTLED_S = 60.0
# Spans are written when the first of them is half a second old.
_FLUSHED_S = 0.8
_CHANGING = (
    ("beyond_requests_total", "outcome"),
    ("rpc_server_call_duration_seconds_count", ""),
    ("beyond_spans_sent_total", ""),
    ("beyond_spans_lost_requests_total", ""),
    ("beyond_spans_lost_total", ""),
)
REFUSALS = frozenset({"overloaded", "deadline_exceeded"})
# What an answer has passed, however full the house was.
_PASSED = frozenset({Stage.ADMISSION, Stage.DECODE, Stage.INFERENCE_QUEUE, Stage.INFER, Stage.TRANSIT})


class Flood(NamedTuple):
    """What came of it. `offered_rps`: as sent; `answered_rps`: with an answer, over the same time.

    `door`: outcome -> requests, as the door counts. `calls`: those that gRPC handed to it. `lost`: requests that were
    to have spans and got none, as the door says. `trees`: trace id -> its spans in the door's file.
    """

    exchanges: list[Exchange]
    offered_rps: float
    answered_rps: float
    door: dict[str, int]
    calls: int
    lost: int
    trees: dict[str, list[Span]]

    def outcomes(self) -> Counter[str]:
        """As the client saw them."""
        return Counter(exchange.error or "ok" for exchange in self.exchanges)


class _Mixed:
    """A target some of whose callers have little time."""

    def __init__(self, patient: OipTarget, hasty: OipTarget) -> None:
        self._patient, self._hasty = patient, hasty
        self._count = 0

    def send(
        self, image: Array, id_: str, due_ns: int, *, probe: bool = False, sampled: bool = False
    ) -> Future[Exchange]:
        self._count += 1
        target = self._patient if self._count % HASTY_EVERY else self._hasty
        return target.send(image, id_, due_ns, probe=probe, sampled=sampled)

    def emulated(self) -> bool:
        return self._patient.emulated()

    def close(self) -> None:
        self._patient.close()
        self._hasty.close()


def flood(requests: int, rate: float, transport: str, folder: Path, kafka: str | None = None) -> Flood:
    """`requests` at `rate` per second, each with a trace that is sampled, through a suite on `transport`.

    `kafka`: a broker that runs, where the transport needs one.
    """
    spans = folder / "door.jsonl"
    metrics = f"127.0.0.1:{free_ports(1)[0]}"
    options = Options(
        ("emulated",),
        preprocess=(
            *("--admission-limit", str(ADMISSION), "--spans", f"file:{spans}", "--slow-ms", "60000"),
            *("--forced-spans-per-s", "0", "--metrics", metrics),
        ),
        log_level="WARNING",
    )
    with Stack((transport,), options, folder / "stack", kafka=kafka) as stack:
        host_port = stack.doors()[transport]
        target = _Mixed(
            OipTarget(host_port, "classification", PATIENT_S, sample_ratio=1.0),
            OipTarget(host_port, "classification", HASTY_S, sample_ratio=1.0),
        )
        tensors = [image_tensor(sample.data) for sample in make("small", 8, folder=folder / "samples")]
        schedule = parse_schedule(f"poisson({rate:g})", requests, seed=1)
        with without_collector():
            exchanges = Run(target, tensors, schedule, prefix="f-", timeout_s=2 * PATIENT_S).run()
        target.close()
        door, calls, lost = _settled(metrics)
    sent = [e.due_ns + next(t.duration_ns for t in e.tiles if t.stage is Stage.SCHEDULE_LAG) for e in exchanges]
    seconds = (max(sent) - min(sent)) / 1e9
    answered = sum(1 for e in exchanges if e.error is None and e.done_ns <= max(sent))
    return Flood(exchanges, len(exchanges) / seconds, answered / seconds, door, calls, lost, _trees(spans))


def _settled(metrics: str) -> tuple[dict[str, int], int, int]:
    """What the door says when it has nothing in hand and no span to send: outcomes, calls, requests without spans.

    Raises `TimeoutError`.
    """
    deadline = time.monotonic() + _SETTLED_S
    before: dict[tuple[str, str], dict[str, float]] = {}
    while time.monotonic() < deadline:
        now = _scrape(metrics)
        if all(now[key] == before.get(key) for key in _CHANGING) and not sum(now["beyond_admission_used", ""].values()):
            outcomes, calls, _, lost, _ = (now[key] for key in _CHANGING)
            return (
                {outcome: round(count) for outcome, count in outcomes.items()},
                round(sum(calls.values())),
                round(sum(lost.values())),
            )
        before = now
        time.sleep(_FLUSHED_S)
    raise TimeoutError(f"the door was not done within {_SETTLED_S:g} s")


def _trees(spans: Path) -> dict[str, list[Span]]:
    """Trace id -> its spans, of requests: batches have traces of their own."""
    found: dict[str, list[Span]] = defaultdict(list)
    for span in read(spans):
        found[span.trace].append(span)
    return {trace: tree for trace, tree in found.items() if any(REQUEST_ID in span.attributes for span in tree)}


def _scrape(metrics: str) -> dict[tuple[str, str], dict[str, float]]:
    """(sample, label) -> its values, summed up by that label; "" where all are."""
    asked = urllib.request.Request(
        f"http://{metrics}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(asked, timeout=_SETTLED_S) as reply:  # noqa: S310
        families = text_string_to_metric_families(reply.read().decode())
        samples = [sample for family in families for sample in family.samples]
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for sample in samples:
        for label in ("outcome", ""):
            found[sample.name, label][sample.labels.get(label, "")] += sample.value
    return {key: dict(values) for key, values in found.items()}


def wrong(result: Flood, requests: int) -> list[str]:
    """What is missing or does not add up, in words; empty where all is there."""
    found = _wrong_ledgers(result.exchanges, requests)
    # The door's books: every call that it was handed has an outcome, and every answer that came was one of its own.
    door, seen = sum(result.door.values()), result.outcomes()
    if result.calls != door:
        found.append(f"gRPC handed {result.calls} calls to the door, which knows of {door}")
    if result.door.get("ok", 0) < seen["ok"]:
        found.append(f"{seen['ok']} answers came, and the door gave {result.door.get('ok', 0)}")
    if result.door.get("overloaded", 0) > seen["overloaded"] + seen["deadline_exceeded"]:
        found.append(f"the door refused {result.door['overloaded']}, and {seen['overloaded']} heard of it")
    return found + _wrong_spans(result)


def _wrong_ledgers(exchanges: Sequence[Exchange], requests: int) -> list[str]:
    found = []
    ids = Counter(exchange.id for exchange in exchanges)
    if len(exchanges) != requests or len(ids) != requests:
        found.append(f"{requests} were sent, {len(exchanges)} came back, with {len(ids)} names")
    for e in exchanges:
        stages = {tile.stage for tile in e.tiles}
        if sum(tile.duration_ns for tile in e.tiles) != e.total_ns:
            found.append(f"{e.id} ({e.error or 'ok'}): its ledger does not add up to {e.total_ns} ns")
        if any(tile.duration_ns < 0 for tile in e.tiles if tile.stage not in (Stage.TRANSIT, Stage.DISPATCH)):
            found.append(f"{e.id}: a part that is no remainder is negative")
        if e.error is None and not (stages >= _PASSED and Stage.UNANSWERED not in stages):
            found.append(f"{e.id}: an answer without {sorted(_PASSED - stages)}")
        if e.error is not None and (e.error not in REFUSALS or e.tiles[-1].stage is not Stage.UNANSWERED):
            found.append(f"{e.id}: {e.error}: {e.message}; its last part is {e.tiles[-1].stage}")
    return found


def _wrong_spans(result: Flood) -> list[str]:
    """All were sampled: who has no tree is counted as lost, and a tree of an answer is what the client's ledger has."""
    found = []
    chosen = sum(result.door.values())
    if len(result.trees) + result.lost != chosen:
        found.append(
            f"{chosen} requests were chosen: {len(result.trees)} have spans, {result.lost} are said to be lost"
        )
    sent = {exchange.traceparent.split("-")[1]: exchange for exchange in result.exchanges}
    for trace, spans in result.trees.items():
        roots = [span for span in spans if REQUEST_ID in span.attributes]
        exchange = sent.get(trace)
        if exchange is None or len(roots) != 1 or roots[0].attributes[REQUEST_ID] != exchange.id:
            found.append(f"trace {trace} is nobody's, or has {len(roots)} roots")
        elif exchange.error is None and roots[0].attributes[DURATION] != _at_the_door(exchange):
            found.append(f"{exchange.id}: the spans say {roots[0].attributes[DURATION]} ns, the ledger another time")
    return found


def _at_the_door(exchange: Exchange) -> int:
    """How long the door had it, by the ledger that came with the answer: all but what is the client's own account."""

    def own(tile: Tile) -> bool:
        return tile.where == WHERE or (tile.where == HOP and bool(tile.facts))

    return sum(tile.duration_ns for tile in exchange.tiles if not own(tile))
