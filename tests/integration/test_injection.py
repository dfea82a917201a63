"""A delay anywhere shows where it was, and nowhere else: with few requests; `bench_injection.py` has many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from loadgen.target import image_tensor
from services.accounting import Stage, monotonic_ns
from tests.injection import HOP, POINTS, TRANSPORTS, WAIT_S, Point, World, measure, small_photograph

pytestmark = [
    pytest.mark.injection,
    # kafka-python reads its message schemas, when it is imported, in a way that Python 3.11 and 3.12 frown upon.
    pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning"),
]

REQUESTS = 14
ROWS = [
    pytest.param(transport, marks=[pytest.mark.kafka] if transport.startswith("kafka") else [], id=transport)
    for transport in TRANSPORTS
]


def server_of(request: pytest.FixtureRequest, transport: str) -> str | None:
    name = {"kafka": "broker", "kafka+python": "broker", "redis": "redis"}.get(transport)
    return None if name is None else str(request.getfixturevalue(name).bootstrap)


@pytest.fixture(scope="module", params=ROWS)
def world(request: pytest.FixtureRequest) -> Iterator[tuple[str, World]]:
    transport = str(request.param)
    world = World(transport, server_of(request, transport))
    yield transport, world
    world.close()


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name.replace(" ", "-"))
def test_a_delay_is_where_it_was(world: tuple[str, World], point: Point) -> None:
    transport, suite = world
    if transport not in point.transports:
        pytest.skip(f"{transport} has no such place")
    assert measure(suite, transport, point, REQUESTS, small_photograph()).grossly_wrong() == []


@pytest.mark.parametrize("transport", ROWS[1:])
def test_a_callee_on_another_clock_changes_no_sum_and_no_unsigned_part(
    request: pytest.FixtureRequest, transport: str
) -> None:
    # Given callees whose clock is half a tenth of a second ahead, behind, and one that is on the caller's
    shares: dict[int, Any] = {}
    for offset in (0, 50_000_000, -50_000_000):
        suite = World(transport, server_of(request, transport), offset_ns=offset)
        # When requests are sent
        image = image_tensor(small_photograph())
        exchanges = [suite.target.send(image, f"{n}", monotonic_ns()).result(WAIT_S) for n in range(30)]
        suite.close()
        # Then every sum is exact, and no part but the remainder of the hop is ever negative
        for exchange in exchanges:
            assert exchange.error is None, exchange.message
            assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
            assert all(tile.duration_ns >= 0 for tile in exchange.tiles if tile.stage is not Stage.TRANSIT)
        remainders = sorted(
            sum(tile.duration_ns for tile in e.tiles if (tile.stage, tile.where) == (Stage.TRANSIT, HOP))
            for e in exchanges[5:]
        )
        shares[offset] = remainders[len(remainders) // 2]
    # And the remainder itself has nothing of the offset in it: a tenth of that would be seen
    assert all(abs(ns - shares[0]) < 5_000_000 for ns in shares.values()), shares
    assert all(ns > 0 for ns in shares.values()), shares
