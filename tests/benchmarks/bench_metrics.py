"""What metrics cost: CPU per request with and without them, and per scrape.

    the path      thread CPU of `Metrics.request` alone, for a ledger that a door really had: of a fused request, and
                  of one over a link. Sampled: with an exemplar per tile
    a request     thread CPU of the thread that has a request in hand, from the door's entry to its answer. Two doors,
                  one with metrics and one without, over the same engine and decoding pool, by `memory://`, take turns,
                  request by request; difference and ratio are medians over the pairs. The image is tiny: nothing is
                  computed, and the ratio is the worst case
    a scrape      CPU and bytes of an OpenMetrics answer over HTTP, after requests of every payload's size
    beside it     what a thread that computes a little and waits 0.2 ms, again and again, takes for one such step, at
                  rest and while scrapes follow each other: how much a request suffers from the interpreter's lock

Quote the ratio, and the path's microseconds beside the microseconds of anything else that the same machine did.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from services import tasks, transports, watching, wire
from services.accounting import Tile, monotonic_ns
from services.batching import Batcher
from services.inference.engine import Engine
from services.link import Link, Remote, expose
from services.metrics import PAYLOADS, Metrics
from services.models.catalogue import load_catalogue
from services.pipeline import Encoded, Pipeline, Prepared, preprocessing_stage
from services.preprocess import preprocessor
from services.preprocess.server import HOP, Door
from services.prometheus import MetricsServer
from services.settings import EngineSettings
from services.tasks.task import Setup, Task
from services.transports.transport import Delivery
from services.wiring import build_engine
from tests.photographs import encode

TRACE = "0af7651916cd43dd8448eb211c80319c"
# Calls of `Metrics.request` that are timed together.
CALLS = 2000
MODEL = """
[tiny]
task = "classification"
law = [0, 0]
recipe = { size = 32, crop = 32, mean = [127, 127, 127], std = [128, 128, 128] }
outputs = { logits = { dtype = "float32", shape = [-1, 10] } }
"""


def thread_us(call: Callable[[], object], repeats: int = 15) -> float:
    """Thread CPU of a call: the median of several rounds, in microseconds."""
    rounds = []
    for _ in range(repeats):
        begin = time.thread_time_ns()
        for _ in range(CALLS):
            call()
        rounds.append((time.thread_time_ns() - begin) / CALLS / 1e3)
    return statistics.median(rounds)


def path_us(tiles: Sequence[Tile], trace_id: str | None) -> float:
    """Of one ledger."""
    metrics = watching.new_metrics("preprocess")
    metrics.add_task("classification", "memory")
    return thread_us(
        lambda: metrics.request(
            "classification",
            tiles,
            hop=HOP,
            via="grpc",
            received_bytes=120_000,
            sent_bytes=900,
            trace_id=trace_id,
        )
    )


class Suite:
    """A door, a link and a listener, over an engine and a decoding pool that others have, too."""

    def __init__(
        self, name: str, task: Task, stage: Batcher[Encoded, Prepared], engine: Engine, *, counted: bool
    ) -> None:
        self.at_door: Metrics | None = None
        url = f"memory://bench-{name}"
        handle = expose(engine.submit, engine.spec.outputs)
        if counted:
            self.at_door, at_engine = watching.new_metrics("preprocess"), watching.new_metrics("inference")
            self.at_door.add_task(task.name, "memory")
            at_engine.add_task(task.name)
            answered = watching.at_the_engine(at_engine, "tiny", task.name, url)
            handle = expose(engine.submit, engine.spec.outputs, answered=answered)
        self._listener = transports.listen(url)
        self._listener.serve(handle)
        remote = Remote(transports.connect(url))
        self._close = remote.close
        link = Link(remote.submit, remote.probe, remote.close)
        self.door = Door(
            Pipeline({task.name: task}, {"tiny": link}, stage),
            admission_limit=8,
            default_timeout_s=30,
            answered=None if self.at_door is None else watching.at_the_door(self.at_door),
        )

    def close(self) -> None:
        """End what was begun here."""
        self._close()
        self._listener.close()


def ask(door: Door, payload: bytes) -> tuple[Tile, ...]:
    """One request; its ledger."""
    now = monotonic_ns()
    return wire.decode_response(door(Delivery(payload, {}, now, now, now)).result(30).payload).tiles


def request_us(door: Door, payload: bytes) -> float:
    """Thread CPU of one request."""
    now = monotonic_ns()
    delivery = Delivery(payload, {}, now, now, now)
    begin = time.thread_time_ns()
    response = door(delivery)
    spent = time.thread_time_ns() - begin
    response.result(0)
    return spent / 1e3


def get(server: MetricsServer) -> bytes:
    """A scrape, as Prometheus does it."""
    asked = urllib.request.Request(f"http://{server.host_port}/", headers={"Accept": "application/openmetrics-text"})
    with urllib.request.urlopen(asked, timeout=30) as reply:  # noqa: S310 # our own
        return bytes(reply.read())


def scrapes(metrics: Metrics, tiles: Sequence[Tile]) -> dict[str, float]:
    """What they cost, and what they do to others, once there was a request of every size."""
    for size in PAYLOADS:
        metrics.request("classification", tiles, hop=HOP, via="grpc", received_bytes=size, sent_bytes=9)
    server = MetricsServer("127.0.0.1:0", metrics)
    steps: list[float] = []
    ended = threading.Event()

    def step() -> None:
        while not ended.is_set():
            begin = time.perf_counter()
            time.sleep(0.0002)
            for _ in range(200):
                pass
            steps.append((time.perf_counter() - begin) * 1e3)

    try:
        rounds = []
        for _ in range(9):
            begin = time.process_time_ns()  # nobody else is at work
            size = len(get(server))
            rounds.append((time.process_time_ns() - begin) / 1e6)
        other = threading.Thread(target=step)
        other.start()
        time.sleep(1)
        rest = sorted(steps)
        steps.clear()
        for _ in range(15):
            get(server)
        ended.set()
        other.join(30)
    finally:
        ended.set()
        server.close()
    beside = sorted(steps)
    return {
        "scrape_ms": statistics.median(rounds),
        "scrape_bytes": size,
        "step_ms": statistics.median(rest),
        "step_p99_ms": rest[int(0.99 * len(rest))],
        "step_beside_ms": statistics.median(beside),
        "step_beside_p99_ms": beside[int(0.99 * len(beside))],
    }


def measure(turns: int) -> dict[str, float]:
    """All figures, by name."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models.toml").write_text(MODEL, encoding="utf-8")
        spec = load_catalogue(Path(folder) / "models.toml")["tiny"]
    task = tasks.load(spec.task, Setup("tiny", spec.recipe, spec.label_names()))
    engine = build_engine(spec, EngineSettings())
    stage = preprocessing_stage(
        preprocessor.load("opencv", 10_000_000, scaled=True), instances=1, max_batch=1, max_delay_s=0, capacity=64
    )
    image = np.empty(1, dtype=object)
    image[0] = encode(np.full((32, 32, 3), 90, dtype=np.uint8))
    payload = wire.encode_request("classification", "1", {"image": image})
    off = Suite("off", task, stage, engine, counted=False)
    on = Suite("on", task, stage, engine, counted=True)
    alone = Pipeline({task.name: task}, {"tiny": Link(engine.submit, None, engine.close)}, stage)
    try:
        linked = ask(on.door, payload)
        fused = ask(Door(alone, admission_limit=8, default_timeout_s=30), payload)
        callee = [tile for tile in linked if tile.where == "inference"]
        pairs = []
        for index in range(turns + 50):  # which warm up
            first, second = (off, on) if index % 2 else (on, off)
            one, two = request_us(first.door, payload), request_us(second.door, payload)
            pairs.append((one, two) if first is off else (two, one))
        pairs = pairs[50:]
        if on.at_door is None:
            raise AssertionError("it counts")
        scraped = scrapes(on.at_door, linked)
    finally:
        for suite in (off, on):
            suite.close()
        stage.close()
        engine.close()
    differences = sorted(b - a for a, b in pairs)
    return {
        "tiles_fused": len(fused),
        "path_fused_us": path_us(fused, None),
        "tiles_engine": len(callee),
        "path_engine_us": path_us(callee, None),
        "tiles_linked": len(linked),
        "path_linked_us": path_us(linked, None),
        "path_linked_sampled_us": path_us(linked, TRACE),
        "request_off_us": statistics.median(a for a, _ in pairs),
        "request_on_us": statistics.median(b for _, b in pairs),
        "request_difference_us": statistics.median(differences),
        "request_difference_q1_us": differences[len(differences) // 4],
        "request_difference_q3_us": differences[3 * len(differences) // 4],
        "request_ratio": statistics.median(b / a for a, b in pairs),
        **scraped,
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench_metrics.py"
    )
    parser.add_argument("--turns", type=int, default=3000, help="pairs of requests (default: 3000)")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON too")
    arguments = parser.parse_args()
    found = measure(arguments.turns)
    print(  # noqa: T201
        f"what metrics cost ({platform.machine()}, Python {platform.python_version()}); MEASURED\n"
        f"the path       {found['path_engine_us']:6.1f} us for {found['tiles_engine']:.0f} tiles (an engine's), "
        f"{found['path_fused_us']:.1f} us for {found['tiles_fused']:.0f} (fused), "
        f"{found['path_linked_us']:.1f} us for {found['tiles_linked']:.0f} (a link), "
        f"{found['path_linked_sampled_us']:.1f} us where it is sampled\n"
        f"a request      {found['request_off_us']:6.1f} us without, {found['request_on_us']:.1f} us with: "
        f"{found['request_difference_us']:+.1f} us (quartiles {found['request_difference_q1_us']:+.1f}, "
        f"{found['request_difference_q3_us']:+.1f}), ratio {found['request_ratio']:.3f}\n"
        f"a scrape       {found['scrape_ms']:6.1f} ms, {found['scrape_bytes'] / 1024:.0f} KiB\n"
        f"beside it      {found['step_ms']:6.2f} ms a step at rest (p99 {found['step_p99_ms']:.2f}), "
        f"{found['step_beside_ms']:.2f} ms beside scrapes (p99 {found['step_beside_p99_ms']:.2f})"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
