"""Delays at one place of the code, in a suite of one process with real transports: does the ledger say where?

`World` is a client, a door, a link and an engine over one transport, in this process, so that a place can be reached.
`POINTS` says where a delay can be injected and which part of the ledger must show it. `measure` sends requests one at
a time, injects into a random half of them, and compares the halves, part by part.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import random
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from unittest import mock

from PIL import Image

from loadgen.target import OipTarget, image_tensor
from services import tasks, transports, wire
from services.accounting import Stage, monotonic_ns
from services.batching import Batcher
from services.inference import engine as engine_module
from services.inference.backends.emulated import EmulatedBackend
from services.inference.engine import Engine
from services.link import Link, Remote, expose
from services.models.catalogue import DEFAULT, load_catalogue
from services.oip import ModelFacts
from services.pipeline import Pipeline, preprocessing_stage
from services.preprocess import preprocessor
from services.preprocess.opencv import OpenCvPreprocessor
from services.preprocess.server import Door
from services.serving import Service
from services.tasks.classification import Classification
from services.tasks.task import Setup
from services.transports.redis import RedisConnection
from services.transports.redis_client import Command
from services.transports.transport import Delivery, Listener, Transport
from tests.photographs import pixels

TRANSPORTS = ("fused", "grpc", "kafka", "kafka+python", "redis")
MODEL, TASK = "emulated", "classification"
CLIENT, DOOR, ENGINE = "client", "preprocess", "inference"
OUTER, HOP = "client>preprocess", "preprocess>inference"
WAIT_S = 30.0

# Half a window wide on each side: what d is, for each request anew.
LEAST_S, MOST_S = 0.050, 0.060
# What the comparison may be off: 2 % of d, and what timers and the rest of the machine add.
SHARE, SLACK_MS = 0.02, 0.2

Key = tuple[Stage, str]


class Injector:
    """Holds up whoever comes by while it is armed, and measures for how long it did."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 # repeatable
        self._armed = False
        self._delay_s = 0.0
        self.injected_ns = 0

    def arm(self, *, on: bool) -> None:
        """For the next request."""
        self._armed = on
        self._delay_s = self._random.uniform(LEAST_S, MOST_S)
        self.injected_ns = 0

    def chance(self) -> bool:
        """A coin."""
        return self._random.random() < 0.5

    def sleep(self) -> None:
        """Once per request."""
        if self._armed:
            self._armed = False
            begin = monotonic_ns()
            time.sleep(self._delay_s)
            self.injected_ns += monotonic_ns() - begin

    def hold_lock(self) -> None:
        """As `sleep`, without letting any other thread of Python's run."""
        if self._armed:
            self._armed = False
            begin = monotonic_ns()
            ctypes.PyDLL(None).usleep(int(self._delay_s * 1e6))
            self.injected_ns += monotonic_ns() - begin


class DelayingProxy:
    """A TCP hop that can hold up what goes forward."""

    def __init__(self, to_port: int) -> None:
        self.before_forward: Callable[[], None] = lambda: None
        self._to_port = to_port
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to_port))
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, forward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if forward and len(data) > 10_000:  # a tensor, not a ping
                    self.before_forward()
                sink.sendall(data)

    def close(self) -> None:
        self._listener.close()
        for sock in self._sockets:
            sock.close()


class World:
    """One transport's suite in this process."""

    def __init__(self, transport: str, server: str | None, *, offset_ns: int = 0) -> None:
        """`server`: host:port of the broker or store that the transport needs.

        `offset_ns`: by which the callee's clock is ahead; it is another clock than the caller's then.
        """
        self._closing: list[Callable[[], object]] = []
        self.proxy: DelayingProxy | None = None
        spec = load_catalogue(DEFAULT)[MODEL]
        self.engine = Engine(spec, lambda: EmulatedBackend(spec))
        link = self._link(transport, server, self._exposed(spec.outputs, offset_ns))
        stage = preprocessing_stage(
            preprocessor.load("opencv", 10**8, scaled=True), instances=1, max_batch=1, max_delay_s=0.0, capacity=16
        )
        task = tasks.load(TASK, Setup(MODEL, spec.recipe, spec.label_names()))
        door = Door(Pipeline({TASK: task}, {MODEL: link}, stage), admission_limit=8, default_timeout_s=WAIT_S)
        facts = ModelFacts(
            TASK, lambda: "emulated", (), task.outputs, 1, 0, 0.0, lambda: True, lambda: door.statistics(TASK)
        )
        self.service = Service("preprocess", "127.0.0.1:0", 16, door, {TASK: facts})
        self.service.start()
        self.target = OipTarget(self.service.host_port, TASK, WAIT_S)
        self._closing = [
            self.target.close,
            lambda: self.service.stop(2),
            link.close,
            stage.close,
            *self._closing,
            self.engine.close,
        ]

    def _exposed(self, outputs: Any, offset_ns: int) -> Any:
        if not offset_ns:
            return expose(self.engine.submit, outputs)
        handle = expose(self.engine.submit, outputs, clock="another", now=lambda: monotonic_ns() + offset_ns)

        def shifted(delivery: Delivery) -> Any:
            """What the transport stamped is on that clock, too."""
            arrived, picked_up, received = (ns + offset_ns for ns in delivery[2:5])
            return handle(delivery._replace(arrived_ns=arrived, picked_up_ns=picked_up, received_ns=received))

        return shifted

    def _link(self, transport: str, server: str | None, handle: Any) -> Link:
        if transport == "fused":
            return Link(self.engine.submit, None, lambda: None)
        if transport == "grpc":
            url = "grpc://127.0.0.1:0"
        else:
            url = f"{transport}://{server}/injection-{uuid.uuid4().hex[:12]}"
        listener: Listener = transports.listen(url)
        listener.serve(handle)
        address = listener.address
        if transport == "grpc":
            self.proxy = DelayingProxy(int(address.rpartition(":")[2]))
            address = f"grpc://127.0.0.1:{self.proxy.port}"
            self._closing.append(self.proxy.close)
        caller: Transport = transports.connect(address)
        self._closing.append(listener.close)
        remote = Remote(caller)
        return Link(remote.submit, remote.probe, remote.close, remote.healthy)

    def close(self) -> None:
        for close in self._closing:
            close()


# --- where a delay can be -------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """`install(injector, world)` holds up the place while its context lasts; `shows`: the part that must say so."""

    name: str
    shows: Key
    transports: tuple[str, ...]
    install: Callable[[Injector, World], contextlib.AbstractContextManager[Any]]


def _before(owner: Any, method: str, when: Callable[..., bool] = lambda *_: True) -> Any:
    """Held up before the method, where its arguments are those."""

    def install(injector: Injector, _: World) -> contextlib.AbstractContextManager[Any]:
        original = getattr(owner, method)

        def held(*args: Any, **named: Any) -> Any:
            if when(*args):
                injector.sleep()
            return original(*args, **named)

        return mock.patch.object(owner, method, held)

    return install


def _after(owner: Any, method: str, when: Callable[[Any], bool], hold: str = "sleep") -> Any:
    """Held up after the method, where its result is that."""

    def install(injector: Injector, _: World) -> contextlib.AbstractContextManager[Any]:
        original = getattr(owner, method)

        def held(*args: Any, **named: Any) -> Any:
            result = original(*args, **named)
            if when(result):
                getattr(injector, hold)()
            return result

        return mock.patch.object(owner, method, held)

    return install


def _assembling(injector: Injector, _: World) -> contextlib.AbstractContextManager[Any]:
    original = engine_module._Worker._assemble

    def held(batch: Any) -> Any:
        injector.sleep()
        return original(batch)

    return mock.patch.object(engine_module._Worker, "_assemble", staticmethod(held))


def _taking(name: str) -> Any:
    """Held up before a worker takes what is in its queue."""

    def install(injector: Injector, _: World) -> contextlib.AbstractContextManager[Any]:
        original = Batcher._collect

        def held(self: Batcher[Any, Any]) -> Any:
            if self.name.startswith(name):
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._closed)
                injector.sleep()
            return original(self)

        return mock.patch.object(Batcher, "_collect", held)

    return install


def _admitting(injector: Injector, world: World) -> contextlib.AbstractContextManager[Any]:
    """Held up between the call's arrival at the door and the worker that takes it."""
    original = ThreadPoolExecutor.submit
    door = world.service.grpc._executor

    def held(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        if self is not door:
            return original(self, fn, *args, **named)

        def later() -> Any:
            injector.sleep()
            return fn(*args, **named)

        return original(self, later)

    return mock.patch.object(ThreadPoolExecutor, "submit", held)


def _polling(injector: Injector, _: World) -> contextlib.AbstractContextManager[Any]:
    """Held up between Kafka and the poll that returns the request's record."""
    from services.transports.kafka_librdkafka import LibrdkafkaConsumer  # where warnings are expected
    from services.transports.kafka_python import KafkaPythonConsumer

    stack = contextlib.ExitStack()
    for consumer in (LibrdkafkaConsumer, KafkaPythonConsumer):
        original = consumer.poll

        def held(self: Any, timeout: float, limit: int, original: Any = original) -> Any:
            records = original(self, timeout, limit)
            if records and threading.current_thread().name == "kafka-consumer":
                injector.sleep()
            return records

        stack.enter_context(mock.patch.object(consumer, "poll", held))
    return stack


def _reading(injector: Injector, _: World) -> contextlib.AbstractContextManager[Any]:
    """Held up between Redis and the read that returns the request's entry."""
    original = RedisConnection.run

    def held(self: RedisConnection, *commands: Command) -> list[Any]:
        replies = original(self, *commands)
        if commands[0][0] == "XREADGROUP" and replies[0]:
            injector.sleep()
        return replies

    return mock.patch.object(RedisConnection, "run", held)


@contextlib.contextmanager
def _travelling(injector: Injector, world: World) -> Iterator[None]:
    """Held up in the network."""
    assert world.proxy is not None
    world.proxy.before_forward = injector.sleep
    try:
        yield
    finally:
        world.proxy.before_forward = lambda: None


_ALL = TRANSPORTS
_HOPS = ("grpc", "kafka", "kafka+python", "redis")
_KAFKA = ("kafka", "kafka+python")

POINTS = (
    Point("client encodes", (Stage.SERIALIZE, CLIENT), _ALL, _before(wire, "encode_request", lambda m, *_: m == TASK)),
    Point("door is busy", (Stage.ADMISSION, DOOR), _ALL, _admitting),
    Point("door parses", (Stage.DESERIALIZE, DOOR), _ALL, _after(wire, "decode_request", lambda r: r.model == TASK)),
    Point("decoders are busy", (Stage.PREPROCESS_QUEUE, DOOR), _ALL, _taking("preprocessing")),
    Point("decode", (Stage.DECODE, DOOR), _ALL, _before(OpenCvPreprocessor, "decode")),
    Point("prepare", (Stage.RESIZE, DOOR), _ALL, _before(OpenCvPreprocessor, "prepare")),
    Point("link encodes", (Stage.SERIALIZE, DOOR), _HOPS, _before(wire, "encode_request", lambda m, *_: m == MODEL)),
    Point("network", (Stage.TRANSIT, HOP), ("grpc",), _travelling),
    Point("consumer is late", (Stage.BROKER_WAIT, HOP), _KAFKA, _polling),
    Point("reader is late", (Stage.BROKER_WAIT, HOP), ("redis",), _reading),
    Point(
        "service parses", (Stage.DESERIALIZE, ENGINE), _HOPS, _after(wire, "decode_request", lambda r: r.model == MODEL)
    ),
    Point("device is busy", (Stage.INFERENCE_QUEUE, ENGINE), _ALL, _taking("engine")),
    Point("batch is assembled", (Stage.UPLOAD, ENGINE), _ALL, _assembling),
    Point("infer", (Stage.INFER, ENGINE), _ALL, _before(EmulatedBackend, "infer")),
    Point("replier is late", (Stage.REPLY_QUEUE, ENGINE), _ALL, _before(Engine, "_complete")),
    Point(
        "service encodes", (Stage.SERIALIZE, ENGINE), _HOPS, _before(wire, "encode_response", lambda m, *_: m == MODEL)
    ),
    Point("waiter is late", (Stage.DISPATCH, DOOR), _HOPS, _before(Remote, "_receive")),
    Point("link parses", (Stage.DESERIALIZE, DOOR), _HOPS, _after(wire, "decode_response", lambda r: r.model == MODEL)),
    Point("interpret", (Stage.INTERPRET, DOOR), _ALL, _before(Classification, "interpret")),
    Point("door encodes", (Stage.SERIALIZE, DOOR), _ALL, _before(wire, "encode_response", lambda m, *_: m == TASK)),
    Point("client is late", (Stage.DISPATCH, CLIENT), _ALL, _before(OipTarget, "_receive")),
    Point(
        "client parses", (Stage.DESERIALIZE, CLIENT), _ALL, _after(wire, "decode_response", lambda r: r.model == TASK)
    ),
    # The interpreter's lock, held in the middle of a stage: that stage suffers.
    Point(
        "lock is held",
        (Stage.DESERIALIZE, ENGINE),
        _HOPS,
        _after(wire, "decode_request", lambda r: r.model == MODEL, "hold_lock"),
    ),
)


def small_photograph() -> bytes:
    """Which takes no time to decode beside what is injected."""
    data = io.BytesIO()
    Image.fromarray(pixels("coffee")).resize((70, 60)).save(data, "JPEG")
    return data.getvalue()


# --- comparing ------------------------------------------------------------------------------------------------------


class Shift(NamedTuple):
    """By how much a part is longer where a delay was injected, in ms: mean, half of its 95 % interval, and median."""

    mean_ms: float
    half_ms: float
    median_ms: float


class Result(NamedTuple):
    """Of one point on one transport. `delay_ms`: the mean injected. `error`: of the part that must show it."""

    point: str
    transport: str
    delay_ms: float
    requests: int
    shifts: dict[Key, Shift]
    error: Shift
    shows: Key
    total: Shift  # of the client's total beyond what was injected: the suite really was that much slower

    @property
    def limit_ms(self) -> float:
        return SHARE * self.delay_ms + SLACK_MS

    def wrong(self) -> list[str]:
        """What is not shown to be within the limit, in words; for many requests.

        A part that moved as the total did, by the client's clock alone, is not booked wrongly: a machine that was idle
        for 50 ms takes longer to wake, and whoever waited for it says so.
        """
        return self._beyond(
            lambda shift: min(abs(shift.mean_ms), abs(shift.mean_ms - self.total.mean_ms)) + shift.half_ms,
            self.limit_ms,
        )

    def grossly_wrong(self) -> list[str]:
        """As `wrong`, for few requests on any machine: medians, and a quarter of the delay.

        Waits in a broker vary by milliseconds on a busy machine; what is booked wrongly is off by the whole delay.
        """
        return self._beyond(lambda shift: abs(shift.median_ms), self.delay_ms / 4)

    def _beyond(self, size: Callable[[Shift], float], limit_ms: float) -> list[str]:
        moved = {key: shift for key, shift in self.shifts.items() if key != self.shows} | {self.shows: self.error}
        return [
            f"{self.point} over {self.transport}: {'@'.join(key)} is off by {shift.mean_ms:.2f} +- {shift.half_ms:.2f} "
            f"ms (median {shift.median_ms:.2f}), limit {limit_ms:.2f} ms"
            for key, shift in moved.items()
            if size(shift) > limit_ms
        ]


def measure(world: World, transport: str, point: Point, requests: int, image: bytes, seed: int = 1) -> Result:
    """One in flight; into a random half of the requests, d is injected."""
    injector = Injector(seed)
    tensor = image_tensor(image)
    rows: list[tuple[bool, int, dict[Key, int]]] = []
    with point.install(injector, world):
        for index in range(-4, requests):  # the first ones warm up
            armed = injector.chance()
            injector.arm(on=armed)
            exchange = world.target.send(tensor, f"i-{index}", monotonic_ns()).result(WAIT_S)
            assert exchange.error is None, exchange.message
            assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
            if index < 0:
                continue
            assert bool(injector.injected_ns) == armed, f"{point.name} was {'not ' if armed else ''}passed"
            parts: dict[Key, int] = {}
            for tile in exchange.tiles:
                key = (tile.stage, tile.where)
                parts[key] = parts.get(key, 0) + tile.duration_ns
            rows.append((armed, injector.injected_ns, parts))
    keys = {key for _, _, parts in rows for key in parts}
    shifts = {
        key: _shift(
            [parts.get(key, 0) / 1e6 for armed, _, parts in rows if armed],
            [parts.get(key, 0) / 1e6 for armed, _, parts in rows if not armed],
        )
        for key in keys
    }
    error = _shift(
        [(parts.get(point.shows, 0) - injected) / 1e6 for armed, injected, parts in rows if armed],
        [parts.get(point.shows, 0) / 1e6 for armed, _, parts in rows if not armed],
    )
    total = _shift(
        [(sum(parts.values()) - injected) / 1e6 for armed, injected, parts in rows if armed],
        [sum(parts.values()) / 1e6 for armed, _, parts in rows if not armed],
    )
    injected = [injected / 1e6 for armed, injected, _ in rows if armed]
    delay_ms = sum(injected) / len(injected)
    return Result(point.name, transport, delay_ms, len(rows), shifts, error, point.shows, total)


def _shift(with_: list[float], without: list[float]) -> Shift:
    """Welch's interval, with the normal's quantile: the samples are large."""
    a, b = _moments(with_), _moments(without)
    half = 1.96 * math.sqrt(a[1] / len(with_) + b[1] / len(without))
    return Shift(a[0] - b[0], half, statistics.median(with_) - statistics.median(without))


def _moments(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
