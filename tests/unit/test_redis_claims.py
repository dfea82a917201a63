"""What a listener takes over, and how: of pending entries and their deliveries alone. No Redis here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.transports.redis_claims import Abandoned, deadly, plan


def test_what_was_delivered_once_is_taken_over_with_others_and_what_was_twice_alone() -> None:
    entries = [Abandoned(b"1-0", 1), Abandoned(b"2-0", 2), Abandoned(b"3-0", 1), Abandoned(b"4-0", 5)]
    claims = plan(entries, ())
    assert [entry.id for entry in claims.together] == [b"1-0", b"3-0"]
    assert [entry.id for entry in claims.alone] == [b"2-0", b"4-0"]


def test_what_is_in_hand_is_not_taken_over_from_oneself() -> None:
    claims = plan([Abandoned(b"1-0", 1), Abandoned(b"2-0", 2)], {b"1-0", b"2-0"})
    assert claims == ((), ())


def test_who_left_in_order_has_not_counted() -> None:
    assert plan([Abandoned(b"1-0", 0)], ()).together == (Abandoned(b"1-0", 0),)


@pytest.mark.parametrize(("attempt", "is_deadly"), [(1, False), (2, False), (3, False), (4, False), (5, True)])
def test_an_entry_is_deadly_after_two_deliveries_alone(attempt: int, is_deadly: bool) -> None:
    assert deadly(attempt) is is_deadly


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 12))
def test_whatever_kills_is_found_and_nothing_else_is(kills: list[bool], prefetch: int) -> None:
    """Processes that die of some entries, one after the other, until nothing is pending."""
    ids = [b"%d-0" % n for n in range(len(kills))]
    deadly_ids = {id_ for id_, kill in zip(ids, kills, strict=True) if kill}
    unread, pending = list(ids), dict[bytes, int]()
    buried: set[bytes] = set()

    def step() -> tuple[Abandoned, ...]:
        """What a process is given next, as the listener takes it: suspects first, alone."""
        claims = plan([Abandoned(id_, pending[id_]) for id_ in sorted(pending, key=ids.index)], ())
        if claims.alone:
            return claims.alone[:1]
        if claims.together:
            return claims.together[:prefetch]
        new, unread[:] = unread[:prefetch], unread[prefetch:]
        return tuple(Abandoned(id_, 0) for id_ in new)

    def survives() -> bool:
        """One process, until it meets something deadly, or nothing is left."""
        while given := step():
            for entry in given:
                pending[entry.id] = entry.deliveries + 1
            for entry in given:
                if deadly(pending[entry.id]):
                    buried.add(entry.id)
                elif entry.id in deadly_ids:
                    return False
                del pending[entry.id]
        return True

    starts = 1
    while not survives():
        starts += 1
        assert starts <= 4 * sum(kills) + 1, "it ends"
    assert buried == deadly_ids
    assert not unread
    assert not pending
