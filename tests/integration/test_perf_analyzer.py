"""Triton's own perf_analyzer measures our door, and reads our statistics. `make perf-analyzer` fetches and runs it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.photographs import jpeg

PERF_ANALYZER = os.environ.get("BEYOND_PERF_ANALYZER") or shutil.which("perf_analyzer")

pytestmark = pytest.mark.skipif(
    PERF_ANALYZER is None,
    reason="perf_analyzer is not here: `make perf-analyzer` fetches it, or name it in BEYOND_PERF_ANALYZER",
)


@pytest.fixture
def door() -> Iterator[Service]:
    settings = parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0", "--link", "efficientnet-lite0=fused:"], {})
    door = build_preprocess(settings)
    door.start()
    yield door
    assert door.stop(5)


def test_perf_analyzer_measures_the_door(door: Service, tmp_path: Path) -> None:
    # Given two photographs, as its input file wants BYTES: each element behind its 4-byte length
    elements = [len(jpeg(name)).to_bytes(4, "little") + jpeg(name) for name in ("coffee", "china")]
    data = tmp_path / "images.json"
    data.write_text(json.dumps({"data": [{"image": {"b64": base64.b64encode(e).decode()}} for e in elements]}))
    assert PERF_ANALYZER is not None
    model = [
        "-m",
        "classification",
        "-i",
        "grpc",
        "-u",
        door.host_port,
        "--shape",
        "image:1",
        "--input-data",
        str(data),
    ]
    # Two windows of 40 requests each, whatever the machine makes of them: nothing here depends on speed
    load = ["--concurrency-range", "2", "--measurement-mode", "count_windows", "--measurement-request-count", "40"]
    # When it measures
    done = subprocess.run(  # noqa: S603 # what the developer named
        [PERF_ANALYZER, *model, *load, "-s", "999", "-r", "3"], capture_output=True, text=True, timeout=100, check=False
    )
    sys.stdout.write(done.stdout)
    # Then it succeeds, and both sides of its report are filled
    assert done.returncode == 0, done.stdout + done.stderr
    client, server = done.stdout.split("Server:")
    asked = _number(client, r"Request count: (\d+)")
    assert asked >= 40
    assert _number(client, r"Throughput: ([\d.]+) infer/sec") > 0
    # The server's count is our ModelStatistics, of the same windows
    assert abs(_number(server, r"Successful request count: (\d+)") - asked) <= 6
    total, overhead, queue, into, infer, out = (
        _number(server, pattern)
        for pattern in (
            r"Avg request latency: (\d+) usec",
            r"overhead (\d+) usec",
            r"queue (\d+) usec",
            r"compute input (\d+) usec",
            r"compute infer (\d+) usec",
            r"compute output (\d+) usec",
        )
    )
    assert abs(total - (overhead + queue + into + infer + out)) <= 5  # each is cut to whole microseconds
    assert overhead <= 0.05 * total  # our parts leave next to nothing unexplained
    assert into > 0  # decoding
    assert infer > 0


def _number(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, (pattern, text)
    return float(found[1])
