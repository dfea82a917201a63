"""What services lost of their spans: read where they say it, waited for until it is final, and unknown otherwise."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from loadgen import service_spans
from loadgen.errors import PlanError
from loadgen.scrape import check_url
from loadgen.service_spans import NOT_NAMED, Lost, Reading, ServiceSpans, of_target, read, words
from services import metrics as m
from services.accounting import Stage, Tile
from services.errors import InvalidInput
from services.local.ports import free_ports
from services.messages import Finished
from services.metrics import Metrics
from services.prometheus import MetricsServer
from services.tracing.sampling import Sampler
from services.tracing.tracer import Tracer
from services.watching import watch_spans

URL = "http://127.0.0.1:9464/metrics"
BEFORE = Reading("preprocess", 1000.0, True, sent=100, lost=7, lost_requests=2, waiting=0)


class Services:
    """A service whose metrics change with virtual time."""

    def __init__(self, says: Callable[[float], Reading]) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self._says = says

    def spans(self, urls: dict[str, list[str]] | None = None) -> ServiceSpans:
        return ServiceSpans(urls or {"door": [URL]}, lambda _: self._says(self.now_s), lambda: self.now_s, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def test_what_was_lost_in_a_run_is_what_was_counted_since_it_began() -> None:
    services = Services(lambda now: BEFORE if now < 10 else BEFORE._replace(sent=350, lost=12, lost_requests=3))
    spans = services.spans()
    services.now_s = 20.0
    (row,) = spans.end()
    assert row == Lost("door", "preprocess", URL, None, True, sent=250, lost=5, lost_requests=1)
    assert of_target([row], "door") == [{"by": "preprocess", "requests": 1, "spans": 5}]
    assert of_target([row], "another") == []
    # Either of them is a loss, and none of both is none
    whole = row._replace(lost=0)
    assert of_target([whole], "door") == [{"by": "preprocess", "requests": 1, "spans": 0}]
    assert of_target([whole._replace(lost_requests=0)], "door") == []


def test_it_waits_for_spans_that_are_on_their_way() -> None:
    # Given a collector that is away: for 17 s after the run the door still tries, then it gives up
    def says(now: float) -> Reading:
        return BEFORE._replace(waiting=3) if 10 < now < 27 else BEFORE if now < 10 else BEFORE._replace(lost=300)

    services = Services(says)
    spans = services.spans()
    services.now_s = 11.0
    (row,) = spans.end()
    assert row.lost == 293
    assert 27 <= services.now_s < 29
    # and where there is no time to wait, it is not known
    services.now_s = 11.0
    (row,) = spans.end(0.0)
    assert (row.lost, row.unknown) == (None, f"{URL}: spans of 3 requests were still on their way")
    assert services.now_s == 11.0


def test_a_request_that_is_offered_after_its_reply_has_left_is_not_missed() -> None:
    # Given a tracer that learns of the last request a moment after the first look
    def says(now: float) -> Reading:
        if now < 0.1:
            return BEFORE
        return BEFORE._replace(waiting=1) if now < 2 else BEFORE._replace(lost_requests=3)

    services = Services(says)
    assert services.spans().end()[0].lost_requests == 1


def test_the_wait_has_an_end() -> None:
    services = Services(lambda now: BEFORE._replace(waiting=1))
    (row,) = services.spans().end(patience_s=40.0)
    assert 40 <= services.now_s < 41
    assert row.unknown is not None


def test_a_service_that_makes_no_spans_is_asked_once_more_and_not_waited_for() -> None:
    services = Services(lambda now: Reading("inference", 1000.0, False))
    (row,) = services.spans().end()
    assert (row.makes, row.lost, row.unknown, services.slept) == (False, 0, None, [])


def test_what_cannot_be_learned_is_unknown_and_no_zero() -> None:
    # Given a target whose services nobody named, one whose metrics are away, and one that is started anew
    def refuse(_: float) -> Reading:
        raise ConnectionRefusedError(111, "Connection refused")

    (row,) = Services(lambda now: BEFORE).spans({"door": []}).end()
    assert row == Lost("door", None, None, NOT_NAMED)
    (row,) = Services(refuse).spans().end()
    assert row == Lost("door", None, URL, f"{URL}: [Errno 111] Connection refused")
    services = Services(lambda now: BEFORE if now < 10 else Reading("preprocess", 1011.0, True))
    spans = services.spans()
    services.now_s = 12.0
    (row,) = spans.end()
    assert (row.lost, row.unknown) == (None, f"{URL}: it was started anew during the run")
    services = Services(lambda now: BEFORE if now < 10 else refuse(now))
    spans = services.spans()
    services.now_s = 12.0
    assert "Connection refused" in str(spans.end()[0].unknown)


def test_what_is_known_in_words() -> None:
    rows: list[dict[str, Any]] = [
        Lost("fused", "preprocess", URL, None, True, 120, 0, 0)._asdict(),
        Lost("grpc", "preprocess", URL, None, True, 80, 4, 1)._asdict(),
        Lost("grpc", "inference", URL, None, False, 0, 0, 0)._asdict(),
        Lost("kafka", None, None, NOT_NAMED)._asdict(),
        Lost("redis", None, None, NOT_NAMED)._asdict(),
    ]
    assert words(rows) == (
        "none were lost by fused preprocess (120 sent); LOST by grpc preprocess (4 spans, and all of 1 requests or "
        f"batches); none are made by grpc inference; not known of kafka, redis: {NOT_NAMED}"
    )
    assert words([]) == ""


# --- a service's real metrics ----------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[tuple[Metrics, str]]:
    metrics = Metrics("preprocess", set())
    (port,) = free_ports(1)
    server = MetricsServer(f"127.0.0.1:{port}", metrics)
    yield metrics, f"http://{server.host_port}/metrics"
    server.close()


def test_a_services_counts_are_read_from_its_metrics(served: tuple[Metrics, str]) -> None:
    metrics, url = served
    metrics.watch(m.SERVICE_INFO, lambda: {("preprocess", "1"): 1})
    reading = read(url)
    assert (reading.service, reading.makes, reading.sent) == ("preprocess", False, 0)
    assert reading.started_s > 1.6e9
    for metric, value in (
        (m.SPANS_SENT, 2_000_000),
        (m.SPANS_LOST, 3),
        (m.SPANS_LOST_REQUESTS, 4),
        (m.SPANS_WAITING, 5),
    ):
        metrics.watch(metric, lambda value=value: {(): value})  # type: ignore[misc]
    assert read(url) == Reading("preprocess", reading.started_s, True, 2_000_000, 3, 4, 5)
    assert read(url.removesuffix("/metrics")) == read(url)


def test_an_answer_that_is_not_a_services_is_an_error(served: tuple[Metrics, str]) -> None:
    with pytest.raises(ValueError, match="not the metrics of a service of this suite"):
        read(served[1])  # a registry without the service's name


_WHOLE = (
    'beyond_service_info{service="preprocess",version="1"} 1.0\nprocess_start_time_seconds 5.0\n'
    "beyond_spans_sent_total 10.0\nbeyond_spans_lost_total 123.0\n"
    "beyond_spans_lost_requests_total 4.0\nbeyond_spans_waiting 0.0\n"
)


@pytest.mark.parametrize(
    ("text", "said", "why"),
    [
        (_WHOLE[: _WHOLE.index("beyond_spans_lost_total")], len(_WHOLE), "cut off"),
        (_WHOLE[: _WHOLE.index("3.0\nbeyond_spans_lost_requests")], None, "cut off"),
        (_WHOLE[: _WHOLE.index("beyond_spans_lost_total")], None, "missing"),
        (_WHOLE.replace("123.0", ""), None, "has no number"),
        (_WHOLE.replace("123.0", "+Inf"), None, "is no number"),
    ],
)
def test_half_an_answer_is_none(text: str, said: int | None, why: str) -> None:
    # Given a service that dies, or goes mad, while it is asked; without a length, an answer ends with its connection
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                length = "" if said is None else f"Content-Length: {said}\r\n"
                connection.sendall(f"HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n{text}".encode())

        service = threading.Thread(target=answer)
        service.start()
        with pytest.raises(ValueError, match=why):
            read(f"http://127.0.0.1:{listening.getsockname()[1]}/metrics")
        service.join(10)


class Gate:
    """A destination that takes nothing until it is opened, and refuses it then, or not."""

    def __init__(self, *, refuses: bool) -> None:
        self.opened = threading.Event()
        self._refuses = refuses

    def send(self, request: ExportTraceServiceRequest, timeout_s: float) -> int:
        assert self.opened.wait(20)
        if self._refuses:
            raise InvalidInput("not these")
        return 0

    def close(self) -> None:
        pass


@pytest.mark.parametrize("refuses", [True, False])
def test_a_service_says_how_many_are_still_waited_for(served: tuple[Metrics, str], refuses: bool) -> None:
    # Given a door whose collector hangs
    metrics, url = served
    gate = Gate(refuses=refuses)
    tracer = Tracer(gate, Sampler(1.0, lambda: 0.0), "1")
    metrics.watch(m.SERVICE_INFO, lambda: {("preprocess", "1"): 1})
    watch_spans(metrics, tracer)
    spans = ServiceSpans({"door": [url]})
    # When five requests are over, whose spans are with the collector, or wait for it
    for number in range(5):
        tracer.offer(Finished(str(number), "classification", 0, (Tile(Stage.DECODE, 1, 1, "preprocess"),), {}, None))
    assert read(url).waiting == 5
    assert spans.end(0.0)[0].unknown == f"{url}: spans of 5 requests were still on their way"
    # Then what became of them is known as soon as the collector has spoken
    gate.opened.set()
    (row,) = spans.end(20.0)
    assert row.unknown is None
    assert bool(row.lost) == refuses
    assert bool(row.sent) != refuses
    tracer.close()
    assert tracer.waiting() <= 1  # the word that it is to end


def test_the_names_are_those_of_the_services() -> None:
    counters = {m.SPANS_SENT: "_SENT", m.SPANS_LOST: "_LOST", m.SPANS_LOST_REQUESTS: "_LOST_REQUESTS"}
    for metric, constant in counters.items():
        assert getattr(service_spans, constant) == f"{metric.name}_total"
    assert m.SPANS_WAITING.name == service_spans._WAITING


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:9464", "http://host", "https://host:1/metrics", "http://host:x/", "grpc://h:1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(PlanError, match=r"not at http://host:port/metrics"):
        check_url(url)
    check_url(URL)
