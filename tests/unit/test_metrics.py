"""Metrics: buckets say what the ledgers said, whatever comes in is bounded, and the exposition is what parsers take."""

from __future__ import annotations

import contextlib
import random
import re
import select
import socket
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from services import metrics as metrics_module
from services.accounting import UNKNOWN_CPU, Stage, Tile
from services.errors import ConfigurationError, Unavailable
from services.metrics import (
    ALL,
    BATCH_SIZE,
    BOUNDS_NS,
    BUDGET_DROPS,
    CONSUMER_LAG,
    HOP_BYTES,
    OTHER,
    PLACES,
    PROCESS_DURATION,
    QUEUE_DEPTH,
    REQUESTS,
    RPC_DURATION,
    STAGE_DURATION,
    STAGE_NEGATIVE,
    Distribution,
    Family,
    Metrics,
    Number,
    main,
    refresh,
    table,
)
from services.prometheus import MetricsServer, registry

ROOT = Path(__file__).parent.parent.parent
TRACE = "0af7651916cd43dd8448eb211c80319c"
KINDS = ("overloaded", "deadline_exceeded", "internal")
NOW_S = 1_700_000_000.5
WAIT = 10.0


def service() -> Metrics:
    metrics = Metrics("preprocess", KINDS, clock=lambda: NOW_S)
    metrics.add_task("classification", "kafka")
    metrics.add_task("faces", "fused")
    return metrics


def over(
    metrics: Metrics,
    tiles: tuple[Tile, ...] = (),
    task: str = "classification",
    size: int = 1000,
    reply: int = 10,
    **options: object,
) -> None:
    metrics.request(task, tiles, hop="client>preprocess", via="grpc", received_bytes=size, sent_bytes=reply, **options)


def tile(ns: int, stage: Stage = Stage.INFER, where: str = "inference") -> Tile:
    return Tile(stage, ns, UNKNOWN_CPU, where)


def families(metrics: Metrics) -> dict[str, Family]:
    return {family.metric.name: family for family in metrics.collect()}


def stages(metrics: Metrics) -> dict[tuple[str, ...], Distribution]:
    family = families(metrics).get(STAGE_DURATION.name)
    return {} if family is None else {s.labels: s for s in family.samples if isinstance(s, Distribution)}


def numbers(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {s.labels: s.value for s in families(metrics)[name].samples if isinstance(s, Number)}


def samples(metrics: Metrics) -> Iterator[Sample]:
    for family in parse_openmetrics(generate_openmetrics(registry(metrics)).decode()):
        yield from family.samples


# --- what the ledgers said -------------------------------------------------------------------------------------------

ledgers = st.lists(
    st.tuples(
        st.sampled_from(["classification", "faces"]),
        st.integers(0, 40 << 20),
        st.lists(
            st.builds(
                tile, st.integers(-10_000, 20_000_000_000), st.sampled_from(Stage), st.sampled_from(sorted(PLACES))
            ),
            max_size=30,
        ),
    ),
    max_size=30,
)


@given(ledgers)
def test_buckets_and_sums_are_those_of_the_ledgers(ledgers: list[tuple[str, int, list[Tile]]]) -> None:
    metrics = service()
    counts: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * (len(BOUNDS_NS) + 1))
    sums: dict[tuple[str, ...], int] = defaultdict(int)
    negative: dict[tuple[str, ...], int] = defaultdict(int)
    for task, size, tiles in ledgers:
        over(metrics, tuple(tiles), task, size)
        payload = next((n for limit, n in metrics_module.PAYLOADS.items() if size <= limit), "16MiB")
        transport = {"classification": "kafka", "faces": "fused"}[task]
        for stage, ns, _, where, *_ in tiles:
            key = ("preprocess", stage.value, where, transport, task, payload)
            counts[key][sum(bound < ns for bound in BOUNDS_NS)] += 1  # the least bound that it does not exceed
            sums[key] += ns
            negative[key] += max(0, -ns)
    found = stages(metrics)
    below = (
        {k: round(v * 1e9) for k, v in numbers(metrics, STAGE_NEGATIVE.name).items()} if any(negative.values()) else {}
    )
    assert {key: list(d.counts) for key, d in found.items()} == counts
    assert {key: d.total - below.get(key, 0) for key, d in found.items()} == sums
    assert sum(sum(d.counts) for d in found.values()) == sum(len(tiles) for _, _, tiles in ledgers)
    assert all(d.total >= 0 for d in found.values())


def test_a_bound_belongs_to_its_bucket() -> None:
    for index, bound in enumerate(BOUNDS_NS):
        metrics = service()
        over(metrics, (tile(bound), tile(bound + 1)))
        [found] = stages(metrics).values()
        assert [i for i, n in enumerate(found.counts) if n] == [index, index + 1]


def test_bounds_are_fine_where_hops_are() -> None:
    assert list(BOUNDS_NS) == sorted(set(BOUNDS_NS))
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (10_000, 10_000_000_000)
    assert len(BOUNDS_NS) >= 16
    assert sum(bound <= 5_000_000 for bound in BOUNDS_NS) >= 12


def test_what_is_counted_by_many_threads_is_all_counted() -> None:
    metrics = service()
    start = threading.Barrier(9)

    def count() -> None:
        start.wait(WAIT)
        for _ in range(500):
            over(metrics, (tile(20_000), tile(-5)), size=3, reply=2, error="overloaded")
            metrics.call("s/M", "OK", 7)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait(WAIT)
    while any(thread.is_alive() for thread in threads):  # scraped meanwhile, it is consistent
        for found in stages(metrics).values():
            assert found.total == 20_000 * found.counts[1]
            assert found.counts[0] == found.counts[1]
    for thread in threads:
        thread.join(WAIT)
    [found] = stages(metrics).values()
    assert (found.counts[:2], found.total) == ((4000, 4000), 80_000_000)
    assert list(numbers(metrics, REQUESTS.name).values()) == [4000]
    assert sorted(numbers(metrics, HOP_BYTES.name).values()) == [8000, 12000]
    [calls] = families(metrics)[RPC_DURATION.name].samples
    assert isinstance(calls, Distribution)
    assert (calls.counts[0], calls.total) == (4000, 28000)


def test_errors_are_counted_by_their_kind_and_late_ones_by_where_they_were_dropped() -> None:
    metrics = service()
    over(metrics)
    over(metrics, error="overloaded")
    over(metrics, error="overloaded")
    over(metrics, error="deadline_exceeded", dropped=True)
    over(metrics, error="deadline_exceeded")
    over(metrics, task="faces", probe=True)
    assert numbers(metrics, REQUESTS.name) == {
        ("preprocess", "classification", "kafka", "ok"): 1,
        ("preprocess", "classification", "kafka", "overloaded"): 2,
        ("preprocess", "classification", "kafka", "deadline_exceeded"): 2,
        ("preprocess", "probe", "fused", "ok"): 1,
    }
    assert numbers(metrics, BUDGET_DROPS.name) == {("arrival",): 1}


def test_a_service_that_hears_by_several_transports_tells_them_apart() -> None:
    metrics = Metrics("inference", KINDS)
    metrics.add_task("classification")
    for via in ("grpc", "kafka"):
        metrics.request(
            "classification", (tile(1),), hop="preprocess>inference", via=via, received_bytes=5, sent_bytes=6
        )
    metrics.processed("kafka", "topic", "group", None, 1)
    metrics.processed("kafka", "topic", "group", "internal", 2)
    assert [labels[3] for labels in stages(metrics)] == ["grpc", "kafka"]
    assert numbers(metrics, HOP_BYTES.name)["inference", "preprocess>inference", "kafka", "sent"] == 6
    assert [s.labels[-1] for s in families(metrics)[PROCESS_DURATION.name].samples] == ["", "internal"]


# --- exemplars -------------------------------------------------------------------------------------------------------


def exemplars(metrics: Metrics) -> dict[str, tuple[str, float, float]]:
    return {
        s.labels["le"]: (s.exemplar.labels["trace_id"], s.exemplar.value, float(s.exemplar.timestamp))
        for s in samples(metrics)
        if s.exemplar is not None
    }


def test_the_newest_request_with_spans_of_a_bucket_is_its_exemplar() -> None:
    metrics = service()
    over(metrics, (tile(1_600_000),), trace_id=TRACE.replace("0af", "fff"))
    over(metrics, (tile(1_700_000), tile(30_000_000)), trace_id=TRACE)
    over(metrics, (tile(1_800_000),))
    assert exemplars(metrics) == {"0.002": (TRACE, 0.0017, NOW_S), "0.05": (TRACE, 0.03, NOW_S)}


def test_what_has_no_spans_is_no_exemplar() -> None:
    metrics = service()
    over(metrics, (tile(1_700_000),))
    assert exemplars(metrics) == {}
    assert sum(sum(d.counts) for d in stages(metrics).values()) == 1


# --- the exposition --------------------------------------------------------------------------------------------------


def filled() -> Metrics:
    """Everything that there is, once at least."""
    metrics = service()
    over(metrics, (tile(1_700_000), tile(-40), tile(99_000_000_000)), trace_id=TRACE)
    metrics.call("inference.GRPCInferenceService/ModelInfer", "OK", 3_000_000)
    metrics.processed("kafka", "topic", "group", None, 3_000_000)
    for metric in ALL:
        if metric.kind != "histogram" and metric.name not in families(metrics):
            metrics.watch(metric, lambda metric=metric: {tuple(f"a {label}" for label in metric.labels): 7})
    metrics.watch_sizes(BATCH_SIZE, ("inference", "a model"), lambda: {1: 3, 4: 2, 5: 1, 1000: 1})
    return metrics


@pytest.mark.parametrize(
    ("generate", "parse"), [(generate_latest, parse_text), (generate_openmetrics, parse_openmetrics)]
)
def test_the_librarys_own_parsers_read_every_metric_of_the_table(generate: object, parse: object) -> None:
    parsed = {family.name: family for family in parse(generate(registry(filled())).decode())}  # type: ignore[operator]
    for metric in ALL:
        family = parsed[metric.name]
        assert family.type == metric.kind
        names = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert names == set(metric.labels)
    assert parsed["process_cpu_seconds"].samples[0].value > 0


def test_buckets_add_up_as_the_format_wants_it() -> None:
    found: dict[str, float] = {}
    for sample in samples(filled()):
        if sample.name.startswith("beyond_stage_duration_seconds"):
            found[sample.name.removeprefix("beyond_stage_duration_seconds") + sample.labels.get("le", "")] = (
                sample.value
            )
    assert found["_bucket1e-05"] == 1  # what is below zero is in the first
    assert found["_bucket0.0015"] == 1
    assert found["_bucket0.002"] == found["_bucket10.0"] == 2
    assert found["_bucket+Inf"] == found["_count"] == 3
    assert found["_sum"] == 99.0017
    sizes = {s.labels["le"]: s.value for s in samples(filled()) if s.name == "beyond_batch_size_bucket"}
    assert (sizes["1.0"], sizes["2.0"], sizes["4.0"], sizes["8.0"], sizes["128.0"]) == (3, 3, 5, 6, 6)
    assert sizes["+Inf"] == 7
    assert [s.value for s in samples(filled()) if s.name == "beyond_batch_size_sum"] == [3 + 8 + 5 + 1000]


def test_a_metric_that_cannot_be_read_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def away() -> dict[tuple[str, ...], float]:
        raise Unavailable("the broker does not answer")

    metrics = service()
    metrics.watch(CONSUMER_LAG, away)
    metrics.watch(QUEUE_DEPTH, lambda: {("preprocess", ""): 3})
    found = families(metrics)
    assert CONSUMER_LAG.name not in found
    assert numbers(metrics, QUEUE_DEPTH.name) == {("preprocess", ""): 3}
    assert "the broker does not answer" in caplog.text


def test_parts_that_tell_of_the_same_are_added_up() -> None:
    metrics = service()
    for waiting in (3, 4):
        metrics.watch(QUEUE_DEPTH, lambda waiting=waiting: {("inference", "m"): waiting})
    metrics.watch(HOP_BYTES, lambda: {("preprocess", "client>preprocess", "grpc", "sent"): 5})
    over(metrics, reply=10)
    assert numbers(metrics, QUEUE_DEPTH.name) == {("inference", "m"): 7}
    assert numbers(metrics, HOP_BYTES.name)["preprocess", "client>preprocess", "grpc", "sent"] == 15


def test_names_units_and_labels_are_as_prometheus_wants_them() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)
    for metric in ALL:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
        assert not metric.name.endswith("_total")  # the format adds it
        assert metric.name.endswith(f"_{metric.unit}") if metric.unit else True
        assert metric.kind in ("histogram", "counter", "gauge")
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) and label != "le" for label in metric.labels)


def test_the_documents_table_is_fresh() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert table() in page
    assert refresh(page) == page, "run: python -m services.metrics docs/metrics.md"
    assert refresh(page.replace("| histogram |", "| gauge |")) == page


def test_the_table_is_printed_or_made_anew_where_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == table()
    page = tmp_path / "page.md"
    page.write_text("# Of ours\n\n| name | what |\n| --- | --- |\n\nAnd more.\n")
    assert main([str(page)]) == 0
    assert page.read_text() == f"# Of ours\n\n{table()}\nAnd more.\n"


def test_the_command_line_teaches_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as asked:
        main(["--help"])
    assert asked.value.code == 0
    assert "docs/metrics.md" in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        main(["--halp"])
    assert wrong.value.code == 2
    assert main([str(tmp_path / "absent.md")]) == 1
    assert "absent.md cannot be made anew" in capsys.readouterr().err
    page = tmp_path / "other.md"
    page.write_text("no table\n")
    assert main([str(page)]) == 1
    assert "other.md has no table of metrics" in capsys.readouterr().err
    assert page.read_text() == "no table\n"


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_hostile_names_make_no_rows() -> None:
    # Given ten thousand requests, each with names of its own wherever a stranger can put one
    metrics = service()
    chance = random.Random(7)  # noqa: S311
    for i in range(10_000):
        name = chance.randbytes(40).decode("latin-1") if i % 2 else f'x{i}"}}\n# EOF'
        over(metrics, (tile(1, where=name), tile(1)), task=name, error=name, size=i * 5000, trace_id=TRACE)
        metrics.processed("kafka", "topic", "group", name, 1)
    # Then they share what there is for them
    found = stages(metrics)
    assert {labels[1:5] for labels in found} == {
        ("infer", OTHER, "none", "unknown"),
        ("infer", "inference", "none", "unknown"),
    }
    assert len(found) == 2 * len(metrics_module.PAYLOADS)
    assert sum(sum(d.counts) for d in found.values()) == 20_000
    assert numbers(metrics, REQUESTS.name) == {("preprocess", "unknown", "none", OTHER): 10_000}
    assert len(families(metrics)[PROCESS_DURATION.name].samples) == 1
    assert len(generate_openmetrics(registry(metrics))) < 100_000


# --- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1:0", filled())
    yield server
    server.close()


def get(server: MetricsServer, accept: str = "") -> tuple[str, str]:
    request = urllib.request.Request(f"http://{server.host_port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=WAIT) as reply:  # noqa: S310
        return reply.headers["Content-Type"], reply.read().decode()


def test_a_scrape_gets_the_format_that_it_asks_for(server: MetricsServer) -> None:
    kind, text = get(server)
    assert kind.startswith("text/plain")
    assert TRACE not in text
    kind, text = get(server, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    assert TRACE in text


def silent(server: MetricsServer) -> socket.socket:
    host, port = server.host_port.split(":")
    return socket.create_connection((host, int(port)), WAIT)


def test_connections_that_say_nothing_hold_nobody_up(server: MetricsServer) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(7):
            held.enter_context(silent(server))
        assert "beyond_queue_depth" in get(server)[1]


def test_connections_beyond_a_few_are_ended(server: MetricsServer) -> None:
    with contextlib.ExitStack() as held:
        few = [held.enter_context(silent(server)) for _ in range(8)]
        for _ in range(5):
            assert held.enter_context(silent(server)).recv(1) == b""
        assert not select.select(few, [], [], 0)[0]


def test_who_drips_a_question_is_hung_up_on(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given all places taken by clients that say a byte now and then
    monkeypatch.setattr("services.prometheus._PATIENCE_S", 0.3)
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(silent(server)) for _ in range(8)]
        deadline = time.monotonic() + WAIT
        ended = 0
        while ended < 8 and time.monotonic() < deadline:
            ended = 0
            for client in clients:
                try:
                    client.sendall(b"G")
                except OSError:
                    ended += 1
            time.sleep(0.05)
        # When their time is over, then they are gone, and scrapes are answered
        assert ended == 8
        assert "beyond_queue_depth" in get(server)[1]


def test_after_its_end_nobody_answers_and_the_port_is_free() -> None:
    server = MetricsServer("127.0.0.1:0", service())
    server.close()
    server.close()
    with pytest.raises(OSError, match="refused"):
        silent(server)
    again = MetricsServer(server.host_port, service())
    assert again.host_port == server.host_port
    again.close()


def test_a_port_that_is_taken_is_said_with_a_remedy(server: MetricsServer) -> None:
    with pytest.raises(ConfigurationError, match=f"{server.host_port}.*give --metrics another one"):
        MetricsServer(server.host_port, service())


@pytest.mark.parametrize("listen", ["9464", ":9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "host:-1"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ConfigurationError, match="write host:port"):
        MetricsServer(listen, service())
