"""Spans of real requests: to a file of OTLP JSON lines, and to a receiver of OTLP over gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from loadgen.__main__ import main
from services import wire
from services.serving import Service
from services.settings import InferenceSettings, PreprocessSettings, parse
from services.tracing.conventions import DURATION, ERROR_TYPE, REQUEST_ID
from services.tracing.destination import to_json
from services.wiring import build_inference, build_preprocess
from tests.integration.test_door import METHOD, WAIT, byte_tensor
from tests.photographs import jpeg
from tests.unit.test_tracing import Span, assert_whole, read, spans_of, tiles_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def inference() -> Iterator[Service]:
    service = build_inference(parse(InferenceSettings, "", ["--listen", "127.0.0.1:0", "--model", "emulated"], {}))
    service.start()
    yield service
    assert service.stop(5)


def ask(door: Service, id_: str, image: bytes, *metadata: tuple[str, str | bytes]) -> wire.InferResponse:
    payload = wire.encode_request("classification", id_, {"image": byte_tensor(image)})
    with grpc.insecure_channel(door.host_port) as channel:
        reply = channel.unary_unary(METHOD, None, None)(payload, timeout=WAIT, metadata=metadata)
    return wire.decode_response(reply)


def door_with_spans(inference: Service, spans: str, *more: str) -> Service:
    link = f"emulated=grpc://{inference.host_port}"
    flags = ["--listen", "127.0.0.1:0", "--link", link, "--spans", spans, "--sample-ratio", "0", *more]
    door = build_preprocess(parse(PreprocessSettings, "", flags, {}))
    door.start()
    return door


def traceparent(flags: str) -> tuple[str, str]:
    return ("traceparent", f"00-{TRACE}-{PARENT}-{flags}")


def assert_says_what_the_ledger_says(spans: list[Span], response: wire.InferResponse) -> None:
    root = assert_whole(spans)
    assert (root.trace, root.parent) == (TRACE, PARENT)
    assert root.attributes[REQUEST_ID] == response.id
    assert tiles_of(spans) == [(tile.stage, tile.duration_ns) for tile in response.tiles]
    assert root.end - root.begin == root.attributes[DURATION] == sum(tile.duration_ns for tile in response.tiles)
    assert {span.service for span in spans} == {"preprocess", "inference"}
    assert [span.service for span in spans if span.name == "infer"] == ["inference"]
    assert [span.service for span in spans if span.name == "decode"] == ["preprocess"]


def test_spans_in_a_file_equal_the_ledger_that_the_caller_got(inference: Service, tmp_path: Path) -> None:
    # Given a door that writes its spans to a file, and samples nothing by itself
    path = tmp_path / "spans.jsonl"
    door = door_with_spans(inference, f"file:{path}")
    # When one request comes with a sampled trace, and others without, unsampled, or whose caller holds the ledger
    response = ask(door, "sampled", jpeg("coffee"), traceparent("01"))
    ask(door, "without", jpeg("coffee"))
    ask(door, "unsampled", jpeg("coffee"), traceparent("00"))
    ask(door, "held by the caller", jpeg("coffee"), traceparent("01"), ("ledger-holder-bin", b"1"))
    assert door.stop(5)
    # Then there is the tree of the first, of nobody else
    assert_says_what_the_ledger_says(read(path), response)


def test_each_image_that_is_asked_about_has_a_trace(inference: Service, tmp_path: Path) -> None:
    # Given a door that samples nothing by itself
    path = tmp_path / "spans.jsonl"
    door = door_with_spans(inference, f"file:{path}")
    # When `loadgen ask` sends the photographs
    assert main(["ask", "--url", f"grpc://{door.host_port}"]) == 0
    assert door.stop(5)
    # Then each of them has one
    roots = [span for span in read(path) if REQUEST_ID in span.attributes]
    assert {root.attributes[REQUEST_ID] for root in roots} == {"coffee", "flower", "china", "chelsea"}
    assert len({root.trace for root in roots}) == len(roots)


def test_a_failed_request_has_spans_that_say_so(inference: Service, tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    door = door_with_spans(inference, f"file:{path}")
    with pytest.raises(grpc.RpcError):
        ask(door, "no image", b"Dear server", traceparent("01"))
    assert door.stop(5)
    spans = read(path)
    root = assert_whole(spans)
    assert root.attributes[ERROR_TYPE] == "undecodable_image"
    assert tiles_of(spans)[-1][0] == "unanswered"


def test_slow_and_failed_requests_have_spans_that_nobody_asked_for(inference: Service, tmp_path: Path) -> None:
    # Given a door for which everything is slow, or nothing
    for slow, expected in (("0.001", {"slow one", "no image"}), ("100000", {"no image"})):
        path = tmp_path / f"{slow}.jsonl"
        door = door_with_spans(inference, f"file:{path}", "--slow-ms", slow)
        # When requests come whose parents were not sampled
        ask(door, "slow one", jpeg("coffee"), traceparent("00"))
        with pytest.raises(grpc.RpcError):
            ask(door, "no image", b"Dear server", traceparent("00"))
        assert door.stop(5)
        # Then they have traces of their own, which link to their parents
        roots = [span for span in read(path) if REQUEST_ID in span.attributes]
        assert {root.attributes[REQUEST_ID] for root in roots} == expected
        assert all(root.trace != TRACE and root.links == ((TRACE, PARENT),) for root in roots)


class Receiver:
    """OTLP over gRPC: opentelemetry.proto.collector.trace.v1.TraceService/Export."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.arrived = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(
            self._export,
            trace_service_pb2.ExportTraceServiceRequest.FromString,
            trace_service_pb2.ExportTraceServiceResponse.SerializeToString,
        )
        name = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        self.arrived.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        return [span for request in self.requests for span in spans_of(to_json(request))]

    def stop(self) -> None:
        self._server.stop(0).wait(10)


def test_spans_reach_a_receiver_of_otlp_over_http(inference: Service) -> None:
    # Given a receiver of HTTP that is busy at first
    taken: list[trace_service_pb2.ExportTraceServiceRequest] = []
    statuses = iter([503, 200])

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = next(statuses, 200)
            if status == 200 and (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf"):
                taken.append(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receive)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    door = door_with_spans(inference, f"http://127.0.0.1:{server.server_port}")
    # When a sampled request has been answered, then its spans come all the same
    response = ask(door, "7", jpeg("coffee"), traceparent("01"))
    deadline = time.monotonic() + 10
    while not taken and time.monotonic() < deadline:
        time.sleep(0.02)
    assert door.stop(5)
    server.shutdown()
    thread.join(10)
    server.server_close()
    assert_says_what_the_ledger_says([span for request in taken for span in spans_of(to_json(request))], response)


def test_spans_reach_a_receiver_of_otlp(inference: Service) -> None:
    # Given a receiver as a collector or Jaeger is one
    receiver = Receiver()
    door = door_with_spans(inference, f"otlp://127.0.0.1:{receiver.port}")
    # When a sampled request has been answered, then its spans come by themselves, and all of them before the end
    response = ask(door, "7", jpeg("coffee"), traceparent("01"))
    assert receiver.arrived.wait(10)
    assert door.stop(5)
    assert_says_what_the_ledger_says(receiver.spans(), response)
    receiver.stop()


def test_a_receiver_that_is_away_harms_no_request(inference: Service) -> None:
    door = door_with_spans(inference, "otlp://127.0.0.1:1")
    assert ask(door, "7", jpeg("coffee"), traceparent("01")).outputs["scores"].shape == (1, 5)
    assert door.stop(5)
