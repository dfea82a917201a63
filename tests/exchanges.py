"""Requests with ledgers of known content, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.target import HOP, Exchange
from services.accounting import UNKNOWN_CPU, Stage, Tile

INNER = "preprocess>inference"
MS = 1_000_000


def tile(stage: Stage, ms: float, where: str = "preprocess", cpu_ms: float | None = None) -> Tile:
    return Tile(stage, round(ms * MS), UNKNOWN_CPU if cpu_ms is None else round(cpu_ms * MS), where)


def exchange(
    tiles: Sequence[Tile], *, id_: str = "r-0", due_ms: float = 0.0, error: str | None = None, message: str = ""
) -> Exchange:
    """The request that these tiles add up to."""
    due = round(due_ms * MS)
    done = due + sum(t.duration_ns for t in tiles)
    return Exchange(id_, due, done, tuple(tiles), error, message, {}, f"00-{'a' * 32}-{'b' * 16}-00")


def walk(
    index: int = 0,
    *,
    lag: float = 0.01,
    decode: float = 2.0,
    decode_cpu: float | None = None,
    infer: float = 5.0,
    outer: float = 0.4,
    inner: float | None = 0.6,
    due_ms: float | None = None,
    error: str | None = None,
) -> Exchange:
    """A request through a door and, unless `inner` is None, over a hop to an engine. Times in ms."""
    tiles = [
        tile(Stage.SCHEDULE_LAG, lag, "client"),
        tile(Stage.SERIALIZE, 0.05, "client", 0.05),
        tile(Stage.ADMISSION, 0.02),
        tile(Stage.DECODE, decode, cpu_ms=decode if decode_cpu is None else decode_cpu),
    ]
    if inner is not None:
        tiles += [tile(Stage.SERIALIZE, 0.1, cpu_ms=0.1), tile(Stage.INFERENCE_QUEUE, 0.2, "inference")]
    tiles.append(tile(Stage.INFER, infer, "inference", infer))
    if inner is not None:
        tiles.append(tile(Stage.TRANSIT, inner, INNER))
    tiles += [tile(Stage.TRANSIT, outer, HOP), tile(Stage.DESERIALIZE, 0.03, "client", 0.03)]
    total = sum(t.duration_ns for t in tiles) / MS
    return exchange(tiles, id_=f"r-{index}", due_ms=index * total if due_ms is None else due_ms, error=error)
