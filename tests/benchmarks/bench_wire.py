"""What `services/wire.py` saves: a tensor's bytes joined on behind a small message, against the protobuf library alone.

Both make the same Open Inference Protocol request, which is checked, and read it back into an array. Each figure is the
median over alternating rounds; the ratios are what to quote. With `--pages` glibc's malloc gives pages back to the
kernel, as it does by default; without, it keeps them, as in our services (docs/adr/0004-malloc-keeps-its-pages.md).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from services import wire
from services.local.deployments import MALLOC
from services.messages import Array
from services.pb import open_inference_pb2

SIZES = {"150 kB": 150_528, "602 kB": 602_112, "9.5 MB": 9_500_000}
ROUNDS = 15
ROUND_S = 0.05


def plain_encode(array: Array) -> bytes:
    """As anyone would write it."""
    request = open_inference_pb2.ModelInferRequest(model_name="model", id="1")
    request.inputs.add(name="images", datatype="UINT8", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


def plain_decode(payload: bytes) -> Array:
    """As anyone would write it."""
    request = open_inference_pb2.ModelInferRequest.FromString(payload)
    (head,) = request.inputs
    return np.frombuffer(request.raw_input_contents[0], dtype=np.uint8).reshape(tuple(head.shape))


def joined_encode(array: Array) -> bytes:
    """As our links do."""
    return wire.encode_request("model", "1", {"images": array})


def joined_decode(payload: bytes) -> Array:
    """As our links do."""
    return wire.decode_request(payload).inputs["images"]


def rate_us(work: Callable[[], object]) -> float:
    """Microseconds of one, over a round."""
    count, begin = 0, time.perf_counter()
    while (now := time.perf_counter()) - begin < ROUND_S:
        work()
        count += 1
    return (now - begin) / count * 1e6


def compare(size: int) -> dict[str, dict[str, float]]:
    """encode and decode -> microseconds of either way, and their ratio."""
    array = np.frombuffer(os.urandom(size), dtype=np.uint8).reshape(1, -1)
    plain, joined = plain_encode(array), joined_encode(array)
    same = open_inference_pb2.ModelInferRequest.FromString(joined)
    if same != open_inference_pb2.ModelInferRequest.FromString(plain):
        raise AssertionError("the two encodings say different things")
    for decode in (plain_decode, joined_decode):
        if not all(np.array_equal(decode(payload), array) for payload in (plain, joined)):
            raise AssertionError("an array came back changed")
    del same
    figures = {}
    for what, theirs, ours in (
        ("encode", lambda: plain_encode(array), lambda: joined_encode(array)),
        ("decode", lambda: plain_decode(plain), lambda: joined_decode(plain)),
    ):
        rounds = [(rate_us(theirs), rate_us(ours)) for _ in range(ROUNDS + 1)][1:]  # the first one warms up
        plain_us, joined_us = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        figures[what] = {"plain_us": plain_us, "joined_us": joined_us, "ratio": ratio}
    return figures


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench_wire.py"
    )
    parser.add_argument("--pages", action="store_true", help="with malloc's defaults instead of our services' settings")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON too")
    arguments = parser.parse_args()
    wanted = dict.fromkeys(MALLOC) if arguments.pages else MALLOC
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # glibc reads these when a process starts.
        kept = {name: value for name, value in os.environ.items() if name not in MALLOC}
        os.execve(  # noqa: S606 # ourselves
            sys.executable,
            [sys.executable, *sys.argv],
            {**kept, **{name: value for name, value in wanted.items() if value is not None}},
        )
    malloc = "gives pages back" if arguments.pages else "keeps its pages"
    lines = [
        f"an Open Inference Protocol request, built and read ({platform.machine()}, malloc {malloc}); MEASURED",
        f"{'':10}{'':8}{'protobuf us':>13}{'joined us':>11}{'ratio':>8}",
    ]
    found = {name: compare(size) for name, size in SIZES.items()}
    lines += [
        f"{name:10}{what:8}{f['plain_us']:13.1f}{f['joined_us']:11.1f}{f['ratio']:8.1f}"
        for name, figures in found.items()
        for what, f in figures.items()
    ]
    print("\n".join(lines))  # noqa: T201
    if arguments.out:
        arguments.out.write_text(json.dumps({"malloc": malloc, "sizes": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
