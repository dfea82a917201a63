"""Services as processes of their own: what they do when a broker, a peer or they themselves go away."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadgen.runner import Run
from loadgen.schedule import parse_schedule
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import Stage
from services.local.broker import Broker
from services.local.ports import free_ports
from services.local.processes import Process, stop_all
from services.pb import open_inference_pb2 as pb
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.answers import LOGITS, check_answer, check_logits, reference_logits, reference_tensor
from tests.integration.test_door import infer, request
from tests.photographs import CLASSES, jpeg

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SCHEMES = ("kafka", "kafka+python")
# Within which services and callers learn that a broker is away.
AWAY_S = 5.0
# What a process of ours takes to its first line on a machine with too much to do.
START_S = 4.0
WAIT = 60.0

SLOW_MODELS = """
[slow]
task = "classification"
law = [300, 0]
recipe = { size = 224, crop = 256, mean = [127, 127, 127], std = [128, 128, 128] }
outputs = { logits = { dtype = "float32", shape = [-1, 1000] } }
"""


class Running(NamedTuple):
    """A service of a test."""

    process: Process
    host_port: str

    def status(self) -> int | None:
        """What it answers to the health question; None while it does not answer."""
        with grpc.insecure_channel(self.host_port) as channel:
            try:
                reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return None
        return int(reply.status)

    def healthy(self) -> bool:
        return self.status() == SERVING

    def says_not_serving(self) -> bool:
        return self.status() == NOT_SERVING

    def lines(self) -> list[dict[str, str]]:
        """What it has logged: one object per line."""
        return [json.loads(line) for line in self.process.log.read_text(encoding="utf-8").splitlines()]


class Services:
    """Starts services for a test, and stops them after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[Process] = []

    def door(self, link: str, *flags: str) -> Running:
        return self._start("preprocess", "--link", link, *flags)

    def inference(self, model: str, *flags: str) -> Running:
        return self._start("inference", "--model", model, *flags)

    def _start(self, module: str, *flags: str) -> Running:
        host_port = f"127.0.0.1:{free_ports(1)[0]}"
        name = f"{module}-{len(self._processes)}"
        command = [sys.executable, "-m", f"services.{module}", "--listen", host_port, *flags]
        self._processes.append(Process(name, command, self.folder / f"{name}.log"))
        return Running(self._processes[-1], host_port)

    def stop(self) -> None:
        stop_all(self._processes, 20)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = Services(tmp_path)
    yield services
    services.stop()


def until(condition: Callable[[], bool], within_s: float, what: str) -> float:
    """Wait for it; the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within_s, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begin


def load(
    host_port: str, schedule: str, requests: int, timeout_s: float = WAIT, names: tuple[str, ...] = ("coffee",)
) -> list[Exchange]:
    target = OipTarget(host_port, "classification", timeout_s)
    tensors = [image_tensor(jpeg(name)) for name in names]
    try:
        return Run(target, tensors, parse_schedule(schedule, requests, 1), prefix="", timeout_s=timeout_s + WAIT).run()
    finally:
        target.close()


def in_background(call: Callable[[], list[Exchange]]) -> Callable[[], list[Exchange]]:
    """Begin `call`; calling what is returned waits for its result."""
    pool = futures.ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return lambda: future.result(2 * WAIT)


def errors(exchanges: list[Exchange]) -> set[str | None]:
    return {exchange.error for exchange in exchanges}


# --- a broker that is not there, comes, dies, and comes back ---------------------------------------------------------


@pytest.mark.alone
def test_a_broker_that_is_away_is_said_and_that_is_back_is_found(services: Services) -> None:
    # Given no broker, and doors and consumers of both clients that want one
    broker = Broker(services.folder / "broker")
    begin = time.time()
    pairs = {}
    for scheme in SCHEMES:
        url = f"{scheme}://{broker.bootstrap}/absent.{scheme.replace('+', '-')}"
        pairs[scheme] = (services.door(f"emulated={url}"), services.inference("emulated", "--consume", url))
    everyone = [service for pair in pairs.values() for service in pair]

    def reported(service: Running) -> bool:
        return any(broker.bootstrap in line["message"] and line["level"] == "WARNING" for line in service.lines())

    def says_so_from_the_start(service: Running) -> bool:
        status = service.status()
        assert status != SERVING
        return status == NOT_SERVING

    # Then each says so, and none claims to be healthy
    try:
        for service in everyone:
            until(lambda s=service: says_so_from_the_start(s), AWAY_S + START_S - (time.time() - begin), "NOT_SERVING")
            until(lambda s=service: reported(s), AWAY_S + START_S - (time.time() - begin), "a line in the log")
        for door, _ in pairs.values():
            asked = time.monotonic()
            [exchange] = load(door.host_port, "closed(1)", 1)
            assert exchange.error == "unavailable"
            assert broker.bootstrap in exchange.message
            assert time.monotonic() - asked < AWAY_S
        assert all(service.says_not_serving() for service in everyone)

        # When it comes, then all works by itself
        broker.start()
        for service in everyone:
            until(service.healthy, WAIT, f"{service.process.name} is healthy")
        for door, _ in pairs.values():
            assert errors(load(door.host_port, "closed(4)", 20)) == {None}

        # When it is killed while requests come all the time, two seconds from now
        loads = [
            in_background(lambda d=door: load(d.host_port, "constant(20)", 160, 8.0)) for door, _ in pairs.values()
        ]
        time.sleep(2)
        broker.kill()
        killed = time.monotonic()
        for service in everyone:
            until(service.says_not_serving, AWAY_S - (time.monotonic() - killed), f"{service.process.name}")

        # Then each caller has its answer, or learns why not before its time is up
        for finish in loads:
            exchanges = finish()
            assert len(exchanges) == 160
            assert errors(exchanges) == {None, "unavailable"}, {e.message for e in exchanges}
            assert max(e.total_ns for e in exchanges if e.error) < AWAY_S * 1e9
            assert exchanges[0].error is None
            assert exchanges[-1].error == "unavailable"
            for e in exchanges:
                assert sum(tile.duration_ns for tile in e.tiles) == e.total_ns

        # When it is back, then all works again by itself
        broker.start()
        for service in everyone:
            until(service.healthy, WAIT, f"{service.process.name} is healthy again")
        for door, _ in pairs.values():
            assert errors(load(door.host_port, "closed(4)", 20)) == {None}
    finally:
        services.stop()
        broker.discard()


# --- several of each -------------------------------------------------------------------------------------------------


class Crowd(NamedTuple):
    """Two doors and two consumers of one topic, with the real model."""

    services: Services
    doors: list[Running]
    consumers: list[Running]
    url: str


@pytest.fixture(scope="module")
def crowd(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    services = Services(tmp_path_factory.mktemp("crowd"))
    url = f"kafka://{broker.bootstrap}/test-services-crowd"
    model = "efficientnet-lite0"
    try:
        consumers = [services.inference(model, "--consume", url) for _ in range(2)]
        doors = [services.door(f"{model}={url}") for _ in range(2)]
        for service in (*consumers, *doors):
            until(service.healthy, WAIT, service.process.name)
        yield Crowd(services, doors, consumers, url)
    finally:
        services.stop()


def test_each_door_gets_its_own_replies_whoever_computed_them(crowd: Crowd) -> None:
    # When two doors are asked about different photographs at the same time
    names = (("coffee", "china"), ("flower", "chelsea"))
    loads = [
        in_background(lambda d=door, n=mine: load(d.host_port, "closed(8)", 80, names=n))
        for door, mine in zip(crowd.doors, names, strict=True)
    ]
    # Then each has all its answers, and only its own
    for finish, mine in zip(loads, names, strict=True):
        exchanges = finish()
        assert errors(exchanges) == {None}
        for exchange in exchanges:
            check_answer(mine[int(exchange.id) % 2], exchange.outputs)
    # And both consumers had their share
    assert all(_executions(consumer) >= 20 for consumer in crowd.consumers)


def _executions(service: Running) -> int:
    with triton.InferenceServerClient(service.host_port) as client:
        return int(client.get_inference_statistics("efficientnet-lite0").model_stats[0].execution_count)


def test_the_work_of_a_consumer_that_is_killed_is_done_by_another(crowd: Crowd) -> None:
    # Given a third consumer that has a share of the work
    victim = crowd.services.inference("efficientnet-lite0", "--consume", crowd.url)
    until(victim.healthy, WAIT, "the third consumer")

    def shares() -> bool:
        assert errors(load(crowd.doors[0].host_port, "closed(8)", 16)) == {None}
        return _executions(victim) > 0

    until(shares, WAIT, "the third consumer has partitions")
    before = _executions(victim)
    finish = in_background(lambda: load(crowd.doors[0].host_port, "closed(8)", 150, names=tuple(CLASSES)))
    until(lambda: _executions(victim) > before, WAIT, "the third consumer computes")
    # When it stands still with requests in hand, and is killed
    victim.process.signal(signal.SIGSTOP)
    time.sleep(0.3)
    victim.process.kill()
    # Then every request is answered, those in its hands by somebody else, after its membership has run out
    exchanges = finish()
    assert errors(exchanges) == {None}
    for exchange in exchanges:
        check_answer(list(CLASSES)[int(exchange.id) % 4], exchange.outputs)
        assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
    assert max(exchange.total_ns for exchange in exchanges) > 2e9


def test_a_caller_whose_consumer_stands_still_gets_its_deadline(crowd: Crowd) -> None:
    # Given consumers that are there and do nothing
    for consumer in crowd.consumers:
        consumer.process.signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as raised:
            infer(crowd.doors[0].host_port, request(jpeg("coffee")), 0.5)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begin < 2
    finally:
        for consumer in crowd.consumers:
            consumer.process.signal(signal.SIGCONT)
    # And the next one its answer
    assert errors(load(crowd.doors[0].host_port, "closed(1)", 4)) == {None}


def test_an_inference_server_answers_a_plain_client_of_the_protocol(crowd: Crowd) -> None:
    for consumer in crowd.consumers:
        with triton.InferenceServerClient(consumer.host_port) as client:
            assert client.is_model_ready("efficientnet-lite0")
            metadata = client.get_model_metadata("efficientnet-lite0")
            assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
                ("images", "FP32", [-1, 3, 224, 224])
            ]
            tensor = triton.InferInput("images", [1, 3, 224, 224], "FP32")
            tensor.set_data_from_numpy(reference_tensor(jpeg("china")))
            result = client.infer("efficientnet-lite0", [tensor], request_id="9")
        assert result.get_response().id == "9"
        check_logits(result.as_numpy("logits")[0], reference_logits(jpeg("china")), LOGITS)


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("scheme", ["grpc", "kafka"])
@pytest.mark.parametrize("who", ["door", "inference"])
def test_sigterm_leaves_time_for_what_is_in_hand(
    services: Services, request: pytest.FixtureRequest, scheme: str, who: str
) -> None:
    # Given a model that takes a second, and four requests on their way through both services
    models = services.folder / "models.toml"
    models.write_text(SLOW_MODELS.replace("300", "1000"), encoding="utf-8")
    flags = ("--models-file", str(models))
    if scheme == "grpc":
        inference = services.inference("slow", "--instances", "4", *flags)
        url = f"grpc://{inference.host_port}"
    else:
        url = f"kafka://{request.getfixturevalue('broker').bootstrap}/test-services-{who}"
        inference = services.inference("slow", "--instances", "4", "--consume", url, *flags)
    door = services.door(f"slow={url}", *flags)
    for service in (inference, door):
        until(service.healthy, WAIT, service.process.name)
    assert errors(load(door.host_port, "closed(1)", 1)) == {None}
    finish = in_background(lambda: load(door.host_port, "closed(4)", 4))
    time.sleep(0.5)
    # When one of them is told to end
    ending = door if who == "door" else inference
    ending.process.signal(signal.SIGTERM)
    # Then the requests are answered, it ends well, and nothing was lost on the way
    assert errors(finish()) == {None}
    assert ending.process.wait(15) == 0
    assert ending.lines()[-1]["message"].endswith("has stopped")


def test_what_is_not_finished_in_time_is_said_by_the_exit_status(services: Services) -> None:
    models = services.folder / "models.toml"
    models.write_text(SLOW_MODELS.replace("300", "3000"), encoding="utf-8")
    door = services.door("slow=fused:", "--models-file", str(models), "--drain-s", "0.2")
    until(door.healthy, WAIT, "the door")
    finish = in_background(lambda: load(door.host_port, "closed(1)", 1))
    time.sleep(1.0)
    door.process.signal(signal.SIGTERM)
    assert door.process.wait(15) == 1
    assert errors(finish()) == {"unavailable"}


# --- servers of others -----------------------------------------------------------------------------------------------


class Foreign:
    """A server of the bare protocol: no ledger, no headers, typed contents. Calls everything espresso."""

    def __init__(self, port: int = 0) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(
            self._infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
        )
        service = "inference.GRPCInferenceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"ModelInfer": handler}),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.tensors: list[tuple[str, list[int], int]] = []
        self._server.start()

    def _infer(self, asked: pb.ModelInferRequest, _: grpc.ServicerContext) -> pb.ModelInferResponse:
        [tensor], [raw] = asked.inputs, asked.raw_input_contents
        self.tensors.append((tensor.datatype, list(tensor.shape), len(raw)))
        logits = np.zeros(1000, np.float32)
        logits[967] = 20
        response = pb.ModelInferResponse(model_name=asked.model_name, id=asked.id)
        output = response.outputs.add(name="logits", datatype="FP32", shape=[1, 1000])
        output.contents.fp32_contents.extend(logits.tolist())
        return response

    def stop(self) -> None:
        self._server.stop(0).wait(10)


def test_a_server_without_a_ledger_is_time_that_is_called_remote() -> None:
    # Given a door in front of a server that is not ours
    foreign = Foreign()
    settings = ["--listen", "127.0.0.1:0", "--link", f"efficientnet-lite0=grpc://127.0.0.1:{foreign.port}"]
    door = build_preprocess(parse(PreprocessSettings, "", settings, {}))
    door.start()
    try:
        # Then it answers, the sum holds, and the time over there is one part that claims no more than it knows
        [exchange] = load(door.host_port, "closed(1)", 1)
        assert bytes(exchange.outputs["labels"][0, 0]) == b"espresso"
        assert foreign.tensors == [("FP32", [1, 3, 224, 224], 3 * 224 * 224 * 4)]
        assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
        remote = [tile for tile in exchange.tiles if tile.where == "preprocess>inference"]
        assert [tile.stage for tile in remote] == [Stage.REMOTE]
        assert not [tile for tile in exchange.tiles if tile.where == "inference"]
        # When it goes away, then callers learn so, and when it is back it is found
        foreign.stop()
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as raised:
            infer(door.host_port, request(jpeg("coffee")))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - begin < AWAY_S
        foreign = Foreign(foreign.port)
        until(lambda: errors(load(door.host_port, "closed(1)", 1)) == {None}, AWAY_S, "the peer is found again")
    finally:
        foreign.stop()
        assert door.stop(5)
