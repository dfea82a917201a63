"""MLPerf's load generator and ours at the same door: the same latencies?

    .venv/bin/pip install -e '.[mlperf]'
    .venv/bin/python -m tests.benchmarks.bench_mlperf [--requests 1000] [--rounds 2] [--load 0.5] [--out FILE]

mlcommons-loadgen's Server scenario drives a real door through a system under test that is our client; its latencies are
those of its own trace (from when a query was scheduled until it was completed), ours those of our runner. In front of
an engine with random service times, so that latency is mostly a queue, and arrivals matter. Each run has services of
its own, whose n-th request takes as long as that of any other. Three runs a round:

*mlperf*    MLPerf's Server scenario at the rate
*ours*      `poisson(rate)`, other instants of the same law: the distributions must be the same (Kolmogorov and Smirnov,
            of series that are thinned out by their autocorrelation; p >= 0.01)
*replayed*  the very instants of MLPerf's run, by our runner: request by request, the latencies must be the same

Exit status 1 where they are not. That may be the machine's: a queue makes much of a little, so give it a quiet one;
how late each run sent is printed. With 1000 requests and two rounds, three minutes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loadgen.quiet import without_collector
from loadgen.runner import Run
from loadgen.samples import make
from loadgen.schedule import Schedule, parse_schedule
from loadgen.statistics import Values, mean_interval
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import Stage, monotonic_ns
from services.messages import Array
from tests.kolmogorov import least_shift, same, thinned
from tests.queueing import TASK, WAIT_S, Suite, models_file, spent_ms

MEAN_MS = 10.0
LEAST_P = 0.01
# A run that sent later than this was disturbed: a difference between runs is then no difference between generators.
DISTURBED_MS = 2.0
# Request by request: what two runs of one machine may differ in the mean, as a share of it.
PAIRED_LIMIT = 0.05
_FILES = 8
# "b": the sample was scheduled at ts (us after the start); complete_ns counts from there.
_SAMPLE = re.compile(
    r'"name":"Sample","cat":"default","ph":"b".*?"ts":([\d.]+),"args":\{"sample_seq":(\d+),.*?'
    r'"issue_start_ns":(\d+),"complete_ns":(\d+)'
)


class Latencies(NamedTuple):
    """Of one run, in the order of arrival. `due_ns`: after the first; `lag_ms`: how late each was sent."""

    due_ns: tuple[int, ...]
    total_ms: Values
    lag_ms: Values


class SystemUnderTest:
    """What MLPerf's load generator asks: our client."""

    def __init__(self, lg: Any, target: OipTarget, tensors: Sequence[Array]) -> None:
        self._lg, self._target, self._tensors = lg, target, tensors
        self._open = 0
        self._idle = threading.Condition()
        self.failed: list[str] = []

    def issue(self, queries: Sequence[Any]) -> None:
        """Called on MLPerf's thread, which is the one that keeps the schedule."""
        for query in queries:
            with self._idle:
                self._open += 1
            id_, index = int(query.id), int(query.index)
            future = self._target.send(self._tensors[index % len(self._tensors)], f"m-{id_}", monotonic_ns())
            future.add_done_callback(self._completer(id_))

    def _completer(self, id_: int) -> Callable[[Future[Exchange]], None]:
        def complete(done: Future[Exchange]) -> None:
            exchange = done.result()
            if exchange.error is not None:
                self.failed.append(f"{exchange.error}: {exchange.message}")
            self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(id_, 0, 0)])
            with self._idle:
                self._open -= 1
                self._idle.notify_all()

        return complete

    def flush(self) -> None:
        """Nothing is held back."""

    def wait(self) -> None:
        """Until all is answered. Raises `TimeoutError`."""
        with self._idle:
            if not self._idle.wait_for(lambda: not self._open, WAIT_S):
                raise TimeoutError(f"{self._open} queries were not answered within {WAIT_S:g} s")


def by_mlperf(lg: Any, target: OipTarget, tensors: Sequence[Array], rate: float, requests: int, seed: int) -> Latencies:
    """A run of the Server scenario. Raises `RuntimeError` where it is not whole."""
    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.Server, lg.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(WAIT_S * 1e9)
    settings.min_duration_ms = 0
    settings.min_query_count = settings.max_query_count = requests
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = seed
    with tempfile.TemporaryDirectory() as folder:
        log = lg.LogSettings()
        output = lg.LogOutputSettings()
        output.outdir = folder
        output.copy_summary_to_stdout = output.copy_detail_to_stdout = False
        log.log_output, log.enable_trace = output, True
        under_test = SystemUnderTest(lg, target, tensors)
        sut = lg.ConstructSUT(under_test.issue, under_test.flush)
        library = lg.ConstructQSL(len(tensors), len(tensors), lambda _: None, lambda _: None)
        try:
            with without_collector():
                lg.StartTestWithLogSettings(sut, library, settings, log, "")
            under_test.wait()
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        trace = (Path(folder) / "mlperf_log_trace.json").read_text(encoding="utf-8")
    if under_test.failed:
        raise RuntimeError(f"{len(under_test.failed)} queries failed, the first with {under_test.failed[0]}")
    found = sorted((float(ts), int(issued), int(done)) for ts, _, issued, done in _SAMPLE.findall(trace))
    if len(found) != requests:
        raise RuntimeError(f"MLPerf's trace has {len(found)} samples of {requests}")
    return Latencies(
        tuple(round((ts - found[0][0]) * 1e3) for ts, _, _ in found),
        np.array([done / 1e6 for _, _, done in found]),
        np.array([issued / 1e6 for _, issued, _ in found]),
    )


def by_us(target: OipTarget, tensors: Sequence[Array], schedule: Schedule) -> Latencies:
    """A run of our runner. Raises `RuntimeError` where it is not whole."""
    with without_collector():
        exchanges = Run(target, tensors, schedule, prefix="o-", timeout_s=WAIT_S).run()
    failed = [e for e in exchanges if e.error is not None]
    if failed or len(exchanges) != schedule.requests:
        raise RuntimeError(f"{len(failed)} of {schedule.requests} failed: {failed[:1]}")
    return Latencies(
        tuple(e.due_ns - exchanges[0].due_ns for e in exchanges),
        np.array([e.total_ns / 1e6 for e in exchanges]),
        np.array([spent_ms(e, Stage.SCHEDULE_LAG) for e in exchanges]),
    )


class World:
    """Where services are started anew for each run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models = models_file(folder, MEAN_MS)
        self._tensors = [image_tensor(sample.data) for sample in make("small", _FILES, folder=folder)]

    def run(self, generate: Callable[[OipTarget, Sequence[Array]], Latencies]) -> Latencies:
        with Suite("grpc", "random", self._models, self._folder) as suite:
            target = OipTarget(suite.door, TASK, WAIT_S)
            try:
                for index in range(30):
                    target.send(self._tensors[index % _FILES], f"w-{index}", monotonic_ns()).result(WAIT_S)
                return generate(target, self._tensors)
            finally:
                target.close()


def compare(theirs: Sequence[Latencies], ours: Sequence[Latencies], name: str) -> dict[str, Any]:
    """A row: are the distributions of all rounds together the same?"""
    a = np.concatenate([thinned(run.total_ms) for run in theirs])
    b = np.concatenate([thinned(run.total_ms) for run in ours])
    found = same(a, b)
    return {
        "compared": f"mlperf and {name}",
        "distance": found.distance,
        "p": found.p,
        "thinned": list(found.n),
        "least_shift_ms": least_shift(a, b),
        "agrees": found.p >= LEAST_P,
        **{f"p{q}_ms": [float(np.percentile(_all(x), q)) for x in (theirs, ours)] for q in (50, 90, 99)},
        "mean_ms": [float(_all(x).mean()) for x in (theirs, ours)],
        "lag_p99_ms": [float(np.percentile(np.concatenate([run.lag_ms for run in x]), 99)) for x in (theirs, ours)],
    }


def _all(runs: Sequence[Latencies]) -> Values:
    return np.concatenate([run.total_ms for run in runs])


def paired(theirs: Sequence[Latencies], replayed: Sequence[Latencies]) -> dict[str, Any]:
    """A row: request by request, at the same instants, with the same service times."""
    differences = _all(replayed) - _all(theirs)
    interval = mean_interval(differences)
    mean = float(_all(theirs).mean())
    return {
        "compared": "mlperf and replayed, request by request",
        "difference_ms": float(differences.mean()),
        "low_ms": interval.low,
        "high_ms": interval.high,
        "median_ms": float(np.median(differences)),
        "correlation": float(np.corrcoef(_all(replayed), _all(theirs))[0, 1]),
        "agrees": abs(float(differences.mean())) <= PAIRED_LIMIT * mean,
    }


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="per run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--load", type=float, default=0.5, help="of the engine (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    try:
        lg = importlib.import_module("mlperf_loadgen")
    except ModuleNotFoundError:
        say("MLPerf's load generator is missing; pip install -e '.[mlperf]'")
        return 2
    rate, requests = arguments.load / MEAN_MS * 1e3, arguments.requests
    theirs: list[Latencies] = []
    ours: list[Latencies] = []
    replayed: list[Latencies] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for seed in range(1, arguments.rounds + 1):
            theirs.append(world.run(lambda t, x, seed=seed: by_mlperf(lg, t, x, rate, requests, seed)))  # type: ignore[misc]
            own = parse_schedule(f"poisson({rate:g})", requests, seed)
            ours.append(world.run(lambda t, x, own=own: by_us(t, x, own)))  # type: ignore[misc]
            again = Schedule("mlperf", requests, 0, theirs[-1].due_ns)
            replayed.append(world.run(lambda t, x, again=again: by_us(t, x, again)))  # type: ignore[misc]
            say(f"round {seed}: {requests} requests, {rate:g}/s, load of the machine {os.getloadavg()[0]:.1f}")
    gaps = [np.concatenate([np.diff(run.due_ns) / 1e6 for run in runs]) for runs in (theirs, ours)]
    arrivals = same(*gaps)
    say(f"gaps between arrivals: distance {arrivals.distance:.3f}, p {arrivals.p:.2f}")
    rows = [compare(theirs, ours, "ours"), compare(theirs, replayed, "replayed")]
    for row in rows:
        say(
            f"{row['compared']}: distance {row['distance']:.3f}, p {row['p']:.2f}, of {row['thinned'][0]} and "
            f"{row['thinned'][1]} (thinned); a shift of {row['least_shift_ms']:.2f} ms would be noticed"
            f"{'' if row['agrees'] else '   DIFFERENT'}"
        )
        for name in ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "lag_p99_ms"):
            say(f"    {name:<11}{row[name][0]:>9.3f}{row[name][1]:>9.3f}")
    last = paired(theirs, replayed)
    say(
        f"{last['compared']}: {last['difference_ms']:+.3f} ms ({last['low_ms']:.3f} to {last['high_ms']:.3f}), median "
        f"{last['median_ms']:+.3f}, correlation {last['correlation']:.4f}{'' if last['agrees'] else '   DIFFERENT'}"
    )
    late = max(lag for row in rows for lag in row["lag_p99_ms"])
    if late > DISTURBED_MS:
        say(
            f"the machine was busy with something else: a run sent {late:.1f} ms late (p99); differences may be its own"
        )
    if arguments.out is not None:
        document = {"gaps": arrivals._asdict(), "rows": [*rows, last], "machine_load": os.getloadavg()[0]}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["agrees"] for row in [*rows, last]) else 1


def say(line: str) -> None:
    """A line of the table."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
