"""The injection matrix: a delay in any one place, on every transport, moves the part that it belongs to and no other.

    .venv/bin/python -m tests.benchmarks.bench_injection [--requests 400] [--only "decode"] [--transports grpc,kafka]

One request in flight; into a random half of them 50 to 60 ms are injected, as measured by who injects. The part's mean
must move by that and every other one by nothing, with 95 % intervals within 2 % of the delay and 0.2 ms. A part may
move where the client's total does, beyond what was injected (`total`): a machine that was idle for 50 ms is slower to
wake, and a wait in the broker is where that shows. Exit status 1 where a part is wrong, or not shown to be right. With
400 requests a point takes 15 s, all of it a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from services.local.broker import Broker
from services.local.redis_server import RedisServer
from services.local.server import Server
from tests.injection import POINTS, TRANSPORTS, Result, World, measure, small_photograph


def row(result: Result) -> dict[str, Any]:
    """For the file."""
    others = {key: shift for key, shift in result.shifts.items() if key != result.shows}
    worst = max(others, key=lambda key: abs(others[key].mean_ms) + others[key].half_ms)
    return {
        "point": result.point,
        "transport": result.transport,
        "requests": result.requests,
        "delay_ms": result.delay_ms,
        "shows": "@".join(result.shows),
        "error_ms": result.error.mean_ms,
        "error_half_ms": result.error.half_ms,
        "total_ms": result.total.mean_ms,
        "total_half_ms": result.total.half_ms,
        "worst_other": "@".join(worst),
        "worst_other_ms": others[worst].mean_ms,
        "worst_other_half_ms": others[worst].half_ms,
        "limit_ms": result.limit_ms,
        "wrong": result.wrong(),
    }


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400, help="per point (default: %(default)s)")
    parser.add_argument("--transports", default=",".join(TRANSPORTS), help="default: %(default)s")
    parser.add_argument("--only", default="", help="points whose name has this in it")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python's, while it is imported
    wanted = arguments.transports.split(",")
    points = [point for point in POINTS if arguments.only in point.name]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        servers: dict[str, Server] = {}  # by transport
        if any(name.startswith("kafka") for name in wanted):
            servers |= dict.fromkeys((name for name in wanted if name.startswith("kafka")), Broker(Path(folder)))
        if "redis" in wanted:
            servers["redis"] = RedisServer(Path(folder))
        try:
            for server in servers.values():
                server.start()
            say(
                f"{'delay in':<20} {'over':<13} {'shows as':<29} {'off by, ms':>14}   {'total, ms':<15} "
                f"{'most moved other, ms':<45}"
            )
            for transport in wanted:
                world = World(transport, servers[transport].bootstrap if transport in servers else None)
                for point in points:
                    if transport not in point.transports:
                        continue
                    found = row(measure(world, transport, point, arguments.requests, small_photograph()))
                    rows.append(found)
                    other = f"{found['worst_other_ms']:+.2f} +- {found['worst_other_half_ms']:.2f}"
                    total = f"{found['total_ms']:+.2f} +- {found['total_half_ms']:.2f}"
                    say(
                        f"{point.name:<20} {transport:<13} {found['shows']:<29} "
                        f"{found['error_ms']:+6.2f} +- {found['error_half_ms']:.2f}   {total:<15} {other:<15} "
                        f"{found['worst_other']:<30}{'WRONG' if found['wrong'] else ''}"
                    )
                world.close()
        finally:
            for server in servers.values():
                server.stop()
    wrong = [what for found in rows for what in found["wrong"]]
    right = sum(not found["wrong"] for found in rows)
    say(f"{len(rows)} points, {right} right; load {os.getloadavg()[0]:.1f}")
    for what in wrong:
        say(what)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def say(line: str) -> None:
    """A line of the table."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
