"""Services that are scraped: what they tell of themselves is what their callers have seen."""

from __future__ import annotations

import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from services.errors import ConfigurationError
from services.local.broker import Broker
from services.local.ports import free_ports
from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.integration.test_door import METHOD, infer, request
from tests.integration.test_services import SCHEMES, SLOW_MODELS, Services, until
from tests.photographs import jpeg
from tests.unit.test_tracing import read

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
WAIT = 60.0
STAGE = "beyond_stage_duration_seconds"


class Scrape:
    """What a service says of itself, now."""

    def __init__(self, host_port: str) -> None:
        asked = urllib.request.Request(
            f"http://{host_port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
        with urllib.request.urlopen(asked, timeout=WAIT) as reply:  # noqa: S310
            self.text = reply.read().decode()
        self.samples: list[Sample] = [
            sample for family in text_string_to_metric_families(self.text) for sample in family.samples
        ]

    def values(self, name: str, label: str) -> dict[str, float]:
        """Of a metric, summed up by one label."""
        found: dict[str, float] = defaultdict(float)
        for sample in self.samples:
            if sample.name == name:
                found[sample.labels[label]] += sample.value
        return dict(found)

    def value(self, name: str, **labels: str) -> float:
        """Of a metric, summed up over all with these labels."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = Services(tmp_path)
    yield services
    services.stop()


def metrics_port() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


def traced(host_port: str, payload: bytes, traceparent: str) -> None:
    with grpc.insecure_channel(host_port) as channel:
        channel.unary_unary(METHOD, None, None)(payload, timeout=WAIT, metadata=(("traceparent", traceparent),))


def status(host_port: str, payload: bytes, timeout: float = WAIT) -> str:
    """The status of a call."""
    try:
        infer(host_port, payload, timeout)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def booked(metrics: str, requests: int) -> Scrape:
    """What is told when so many calls are booked: that comes after their answers."""
    found: list[Scrape] = []

    def all_are() -> bool:
        found.append(Scrape(metrics))
        calls = found[-1].value("rpc_server_call_duration_seconds_count", rpc_method=METHOD.removeprefix("/"))
        return found[-1].value("beyond_requests_total") >= requests <= calls

    until(all_are, WAIT, f"{requests} requests are booked")
    return found[-1]


def test_a_door_with_the_real_model_tells_what_the_replies_told(services: Services) -> None:
    # Given a door with the model in it, and requests of all kinds
    metrics = metrics_port()
    door = services.door("efficientnet-lite0=fused:", "--metrics", metrics)
    until(door.healthy, WAIT, "the door is healthy")
    replies = [infer(door.host_port, request(jpeg("coffee"))) for _ in range(5)]
    before = booked(metrics, 5)
    traced(door.host_port, request(jpeg("coffee")), SAMPLED)
    assert status(door.host_port, request(b"no image")) == "INVALID_ARGUMENT"
    assert status(door.host_port, request(jpeg("coffee"), model="of mine")) == "NOT_FOUND"
    assert status(door.host_port, b"\xff\xff no message") != "OK"

    # Then stages are the ledgers', to the nanosecond
    told: dict[tuple[str, str], int] = defaultdict(int)
    for reply in replies:
        for tile in reply.tiles:
            told[tile.stage.value, tile.where] += tile.duration_ns
    found = {
        (s.labels["stage"], s.labels["where"]): round(s.value * 1e9) for s in before.samples if s.name == f"{STAGE}_sum"
    }
    assert found == told
    assert {s.labels["transport"] for s in before.samples if s.name.startswith(STAGE)} == {"fused"}
    assert {s.labels["payload"] for s in before.samples if s.name.startswith(STAGE)} == {"256KiB"}
    assert before.value("beyond_batch_size_sum", queue="inference", model="efficientnet-lite0") == 5

    # And every request is counted, by what became of it
    after = booked(metrics, 9)
    assert after.values("beyond_requests_total", "outcome") == {
        "ok": 6,
        "undecodable_image": 1,
        "unknown_model": 1,
        "invalid_input": 1,
    }
    assert after.values("beyond_requests_total", "task") == {"classification": 7, "unknown": 2}
    infer_calls = {"rpc_method": METHOD.removeprefix("/"), "rpc_system_name": "grpc"}
    calls = "rpc_server_call_duration_seconds_count"
    assert after.value(calls, **infer_calls, rpc_response_status_code="OK") == 6
    assert after.value(calls, **infer_calls, rpc_response_status_code="INVALID_ARGUMENT") == 2
    assert after.value(calls, **infer_calls, rpc_response_status_code="NOT_FOUND") == 1
    assert after.value("beyond_admission_used") == 0
    assert after.value("process_cpu_seconds_total") > 0

    # And who was sampled can be found, in the buckets that it fell into
    traces = [s for s in after.samples if s.exemplar is not None]
    assert {s.exemplar.labels["trace_id"] for s in traces if s.exemplar is not None} == {TRACE}
    assert {s.labels["stage"] for s in traces} >= {"decode", "infer", "transit"}
    for sample in traces:
        assert sample.exemplar is not None
        assert sample.exemplar.value <= float(sample.labels["le"])
    assert "exemplar" not in before.text
    assert TRACE not in before.text

    # And metrics end with their service
    assert door.process.running()
    services.stop()
    with pytest.raises(OSError, match="refused"):
        Scrape(metrics)


class Slow(NamedTuple):
    """A door whose model takes 600 ms, one at a time."""

    service: Service
    metrics: str


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    (tmp_path / "models.toml").write_text(SLOW_MODELS.replace("300", "1500"))
    metrics = metrics_port()
    flags = ["--models-file", str(tmp_path / "models.toml"), "--link", "slow=fused:", "--listen", "127.0.0.1:0"]
    flags += ["--metrics", metrics, "--admission-limit", "4", "--door-threads", "16", "--queue-capacity", "2"]
    service = build_preprocess(parse(PreprocessSettings, "", flags, {}))
    service.start()
    yield Slow(service, metrics)
    assert service.stop(5)


def at_work(metrics: str) -> Scrape:
    """What is told while the model works."""
    found: list[Scrape] = []

    def works() -> bool:
        found.append(Scrape(metrics))
        return found[-1].value("beyond_queue_in_work", queue="inference") == 1

    until(works, WAIT, "the model works")
    return found[-1]


def test_who_is_refused_and_who_is_dropped_is_counted(slow: Slow) -> None:
    # Given more requests at once than are admitted, and than the queue takes
    payload = request(jpeg("coffee"))
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(status, slow.service.host_port, payload) for _ in range(12)]
        busy = at_work(slow.metrics)
        statuses = [call.result(WAIT) for call in calls]
    refused = statuses.count("RESOURCE_EXHAUSTED")
    assert refused >= 8
    assert statuses.count("OK") == 12 - refused

    # Then a scrape amid it told of what was inside, and the counts are what callers saw
    assert 1 <= busy.value("beyond_admission_used") <= busy.value("beyond_admission_limit") == 4
    assert busy.value("beyond_queue_depth", queue="inference") <= 2
    after = booked(slow.metrics, 12)
    assert after.values("beyond_requests_total", "outcome") == {"ok": 12 - refused, "overloaded": refused}
    assert after.value("beyond_queue_refusals_total", queue="inference") <= refused

    # When one comes whose time is spent while those before it are computed
    with ThreadPoolExecutor(2) as pool:
        before = [pool.submit(status, slow.service.host_port, payload) for _ in range(2)]
        at_work(slow.metrics)
        assert status(slow.service.host_port, payload, 0.7) == "DEADLINE_EXCEEDED"
        assert [call.result(WAIT) for call in before] == ["OK", "OK"]

    # Then it was dropped before it cost anything, and that is said
    def dropped() -> bool:
        return Scrape(slow.metrics).value("beyond_budget_drops_total", place="inference") == 1

    until(dropped, WAIT, "a drop")
    after = booked(slow.metrics, 15)
    assert after.values("beyond_requests_total", "outcome")["deadline_exceeded"] == 1
    assert after.value("beyond_batch_size_sum", queue="inference") == 12 - refused + 2


def test_who_was_chosen_by_the_door_can_be_found_in_the_trace_that_it_got(tmp_path: Path) -> None:
    # Given a door that makes spans of what is slow, which is everything, and of none that its caller sampled
    spans, metrics = tmp_path / "spans.jsonl", metrics_port()
    flags = ["--link", "emulated=fused:", "--listen", "127.0.0.1:0", "--metrics", metrics, "--spans", f"file:{spans}"]
    flags += ["--sample-ratio", "0", "--slow-ms", "0.001", "--forced-spans-per-s", "100"]
    service = build_preprocess(parse(PreprocessSettings, "", flags, {}))
    service.start()
    try:
        # When requests come, of which one brings a decision against spans
        infer(service.host_port, request(jpeg("coffee")))
        traced(service.host_port, request(jpeg("coffee")), f"{SAMPLED[:-1]}0")
        exemplars = [s.exemplar for s in booked(metrics, 2).samples if s.exemplar is not None]
    finally:
        assert service.stop(5)
    # Then each bucket's exemplar is in a trace that there is, and that is not the caller's
    made = {span.trace for span in read(spans)}
    assert len(made) == 2
    assert TRACE not in made
    assert exemplars
    assert {exemplar.labels["trace_id"] for exemplar in exemplars} <= made


def test_a_port_that_is_taken_keeps_the_service_from_starting(slow: Slow) -> None:
    flags = ["--link", "emulated=fused:", "--listen", "127.0.0.1:0", "--metrics", slow.metrics]
    with pytest.raises(ConfigurationError, match=rf"metrics cannot be served on {slow.metrics}.*--metrics"):
        build_preprocess(parse(PreprocessSettings, "", flags, {}))


@pytest.mark.kafka
@pytest.mark.timeout(180)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_ends_of_a_link_tell_the_same_and_what_waits_is_seen(
    services: Services, broker: Broker, scheme: str
) -> None:
    # Given a consumer that takes four records at a time, of 300 ms each, and a door
    models = services.folder / "models.toml"
    models.write_text(SLOW_MODELS)
    topic = f"test-metrics-{scheme.replace('+', '-')}"
    url = f"{scheme}://{broker.bootstrap}/{topic}?prefetch=4"
    at_engine, at_door = metrics_port(), metrics_port()
    engine = services.inference("slow", "--models-file", str(models), "--consume", url, "--metrics", at_engine)
    door = services.door(f"slow={url}", "--models-file", str(models), "--metrics", at_door)
    for service in (engine, door):
        until(service.healthy, WAIT, f"{service.process.name} is healthy")

    # When sixteen requests come at once
    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(infer, door.host_port, request(jpeg("coffee")), WAIT) for _ in range(16)]
        lags, hands, flights = [], [], []
        while not all(call.done() for call in calls):
            found = Scrape(at_engine)
            lags.append(found.value("beyond_consumer_lag_records", topic=topic, group=topic))
            hands.append(found.value("beyond_listener_in_hand", transport=scheme))
            flights.append(Scrape(at_door).value("beyond_link_in_flight", model="slow", transport=scheme))
            time.sleep(0.1)
        replies = [call.result(WAIT) for call in calls]

    # Then what waits in the broker is lag, what the consumer has taken is in hand, and all of it is in flight
    assert max(lags) > max(hands)
    assert 8 <= max(lags) <= 16
    assert 1 <= max(hands) <= 4
    assert max(lags) <= max(flights) <= 16
    until(lambda: lag(at_engine, topic) == 0, WAIT, "no lag")
    until(lambda: Scrape(at_engine).value("beyond_requests_total") == 16, WAIT, "all are booked at the engine")
    engine_says, door_says = Scrape(at_engine), booked(at_door, 16)
    assert len(engine_says.values("beyond_consumer_lag_records", "partition")) == 4
    assert door_says.value("beyond_link_in_flight") == 0

    # And both ends of the hop have counted the same bytes, and the same requests
    hop = {"hop": "preprocess>inference", "transport": scheme}
    moved = "beyond_hop_bytes_total"
    assert engine_says.value(moved, **hop, direction="received") == door_says.value(moved, **hop, direction="sent")
    assert engine_says.value(moved, **hop, direction="sent") == door_says.value(moved, **hop, direction="received")
    assert engine_says.value(moved, **hop, direction="received") > 16 * len(_tensor())
    processed = {"messaging_system": "kafka", "messaging_destination_name": topic, "error_type": ""}
    assert engine_says.value("messaging_process_duration_seconds_count", **processed) == 16
    assert engine_says.value("messaging_process_duration_seconds_sum", **processed) > 16 * 0.3
    assert engine_says.values("beyond_requests_total", "transport") == {scheme: 16}
    assert door_says.values("beyond_requests_total", "transport") == {scheme: 16}
    assert engine_says.value("beyond_dead_letters_total", topic=topic) == 0
    assert door_says.value("beyond_link_late_replies_total", transport=scheme) == 0

    # And each has the other's time in its own ledger
    whole = sum(tile.duration_ns for reply in replies for tile in reply.tiles)
    total = door_says.value(f"{STAGE}_sum", service="preprocess") - door_says.value(
        "beyond_stage_negative_seconds_total"
    )
    assert total == pytest.approx(whole / 1e9, abs=1e-6)
    inferred = engine_says.value(f"{STAGE}_sum", service="inference", stage="infer")
    assert inferred == pytest.approx(door_says.value(f"{STAGE}_sum", service="preprocess", stage="infer"), abs=1e-6)


def lag(metrics: str, topic: str) -> float:
    found = Scrape(metrics)
    assert "beyond_consumer_lag_records" in found.text
    return found.value("beyond_consumer_lag_records", topic=topic)


def _tensor() -> bytes:
    """A model's input, the least that a request carries."""
    return bytes(3 * 224 * 224)
