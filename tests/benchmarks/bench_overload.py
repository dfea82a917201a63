"""Losses at overload: does every request keep its ledger, and every trace its spans?

    .venv/bin/python -m tests.benchmarks.bench_overload [--requests 10000] [--rate 2500] [--transports fused,grpc]

An open loop asks for several times what a door with little room answers, a quarter of it with little patience, all of
it with a sampled trace; the door writes the spans. Each request must come back with a ledger that adds up, answered or
refused; each request that the door turned to must have its spans, or be counted as one that has none.
`tests/integration/test_overload.py` is the same with fewer. Exit status 1 where something is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadgen.statistics import quantile
from services.accounting import Stage
from services.local.broker import Broker
from services.local.deployments import TABLE
from tests.overload import flood, wrong
from tests.queueing import spent_ms


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="per transport (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2500.0, help="requests per second (default: %(default)s)")
    parser.add_argument("--transports", default="fused,grpc", help=f"of {','.join(TABLE)} (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    say(
        f"{'transport':<14}{'requests':>9}{'offered/s':>11}{'answered/s':>12}{'answered':>10}{'refused':>9}"
        f"{'too late':>10}{'traces':>8}{'said lost':>11}{'lag p99 ms':>12}  missing"
    )
    for transport in arguments.transports.split(","):
        with tempfile.TemporaryDirectory() as folder:
            broker = Broker(Path(folder) / "broker") if TABLE[transport].broker == "kafka" else None
            try:
                if broker is not None:
                    broker.start()
                bootstrap = None if broker is None else broker.bootstrap
                result = flood(arguments.requests, arguments.rate, transport, Path(folder), bootstrap)
            finally:
                if broker is not None:
                    broker.stop()
        missing, seen = wrong(result, arguments.requests), result.outcomes()
        lag = quantile(sorted(spent_ms(e, Stage.SCHEDULE_LAG) for e in result.exchanges), 0.99)
        say(
            f"{transport:<14}{arguments.requests:>9}{result.offered_rps:>11.0f}{result.answered_rps:>12.0f}"
            f"{seen['ok']:>10}{seen['overloaded']:>9}{seen['deadline_exceeded']:>10}{len(result.trees):>8}"
            f"{result.lost:>11}{lag:>12.1f}  {len(missing)}"
        )
        for what in missing[:5]:
            say(f"    {what}")
        rows.append(
            {
                "transport": transport,
                "requests": arguments.requests,
                "offered_rps": result.offered_rps,
                "answered_rps": result.answered_rps,
                "outcomes": dict(seen),
                "door": result.door,
                "traces": len(result.trees),
                "said_lost": result.lost,
                "missing": missing,
                "machine_load": os.getloadavg()[0],
            }
        )
    say(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["missing"] for row in rows) else 0


def say(line: str) -> None:
    """A line of the table."""
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
