"""Entries in hand, what waits to be sent, and how messages lie in streams. No Redis here."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from services.errors import ConfigurationError, Overloaded
from services.transports.outbox import Outbox
from services.transports.redis_client import (
    Command,
    NoGroup,
    after,
    ask,
    check_server,
    ensure_group,
    entries,
    fields,
    id_numbers,
    parse_url,
    read_entries,
)
from services.transports.redis_entries import InHand

# --- in hand ---------------------------------------------------------------------------------------------------------


def test_what_a_peer_has_taken_over_is_lost_until_it_is_delivered_anew() -> None:
    hand = InHand()
    hand.take([b"1-0", b"2-0", b"3-0"])
    assert hand.keep({b"1-0", b"3-0", b"9-0"}) == [b"1-0", b"3-0"]
    assert [hand.lost(id_) for id_ in (b"1-0", b"2-0", b"3-0")] == [False, True, False]
    hand.take([b"2-0"])
    assert not hand.lost(b"2-0")
    assert hand.count == 3


def test_a_wait_ends_when_something_is_out_of_hand() -> None:
    hand = InHand()
    hand.take([b"1-0"])
    assert not hand.wait_empty(0.0)
    before = hand.changes
    threading.Timer(0.05, hand.release, [[b"1-0"]]).start()
    hand.wait_change(before, 5)
    assert hand.wait_empty(5)
    assert hand.ids() == frozenset()


# --- the outbox ------------------------------------------------------------------------------------------------------


def test_a_batch_is_bounded_by_number_and_bytes_and_a_large_item_goes_by_itself() -> None:
    box: Outbox[str] = Outbox(100, 1000, batch=3, batch_bytes=100)
    for name, nbytes in (("a", 40), ("b", 40), ("c", 40), ("huge", 500), ("d", 1), ("e", 1), ("f", 1), ("g", 1)):
        assert box.put(name, nbytes)
    batches = [[name for name, _ in box.take(0.0)] for _ in range(5)]
    assert batches == [["a", "b"], ["c"], ["huge"], ["d", "e", "f"], ["g"]]


def test_a_full_outbox_refuses_and_an_empty_one_never() -> None:
    box: Outbox[str] = Outbox(2, 100, batch=9, batch_bytes=1000)
    assert box.put("larger than all", 5000)
    assert not box.put("no room", 1)
    box.take(0.0)
    assert box.put("a", 60)
    assert not box.put("too many bytes", 60)
    assert box.put("b", 1)
    assert not box.put("too many", 1)
    box.clear()
    assert box.put("c", 1)


def test_what_could_not_be_sent_is_next_in_the_same_order() -> None:
    box: Outbox[str] = Outbox(9, 1000, batch=2, batch_bytes=1000)
    for name in "abc":
        box.put(name, 10)
    box.put_back(box.take(0.0))
    assert [name for _ in range(2) for name, _ in box.take(0.0)] == ["a", "b", "c"]


def test_a_closed_outbox_keeps_nobody_waiting() -> None:
    box: Outbox[str] = Outbox(9, 1000, batch=2, batch_bytes=1000)
    threading.Timer(0.05, box.close).start()
    begin = time.monotonic()
    assert box.take(10.0) == []
    assert time.monotonic() - begin < 5


# --- the URL ---------------------------------------------------------------------------------------------------------


def test_a_url_names_its_streams() -> None:
    url = parse_url("redis://[::1]:6380/work?prefetch=3&session_ms=2000")
    assert (url.host, url.port, url.stream, url.group, url.dead_stream) == ("::1", 6380, "work", "work", "work.dead")
    assert url.reply_stream("me") == "work.replies.me"
    assert (url.prefetch, url.session_ms, url.workers) == (3, 2000, 1)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_url("redis://me:hunter2@host:6379/work")
    assert "hunter2" not in refused.value.message
    assert "BEYOND_REDIS_PASSWORD" in refused.value.message


# --- entries ---------------------------------------------------------------------------------------------------------


def test_a_message_lies_in_an_entry_as_fields_and_comes_out_whole() -> None:
    flat = ["bi-id", b"7", *fields(b"\0payload", {"traceparent": b"00", "empty": b""})]
    raw = [value.encode() if isinstance(value, str) else value for value in flat]
    ((entry),) = read_entries([[b"work", [[b"5-1", raw]]]])
    assert (entry.id, entry.payload) == (b"5-1", b"\0payload")
    assert entry.headers == {"traceparent": b"00", "empty": b""}
    assert entry.fields["bi-id"] == b"7"


def test_entries_that_were_deleted_meanwhile_are_left_out() -> None:
    assert [entry.id for entry in entries([[b"1-0", None], [b"2-0", [b"a", b"b"]]])] == [b"2-0"]
    assert entries(None) == read_entries(None) == []


def test_ids_are_two_numbers() -> None:
    assert id_numbers(b"1795575080525-3") == (1795575080525, 3)
    assert after(b"17-3") == b"17-4"


# --- the server ------------------------------------------------------------------------------------------------------


class Server:
    """A `Connection` that answers from a table."""

    def __init__(self, **replies: Any) -> None:
        self._replies = replies

    def run(self, *commands: Command) -> list[Any]:
        return [self._replies["_".join(map(str, command[:2])).lower()] for command in commands]

    def close(self) -> None:
        pass


URL = parse_url("redis://host:6379/work")


@pytest.mark.parametrize(
    ("server", "memory", "words"),
    [
        (b"redis_version:6.0.16\r\n", b"maxmemory:0\r\n", "6.0.16; links need 7.0"),
        (b"redis_version:7.2.4\r\n", b"maxmemory:100\r\nmaxmemory_policy:volatile-lru\r\n", "volatile-lru"),
    ],
)
def test_a_server_that_would_not_do_is_refused_with_the_remedy(server: bytes, memory: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_server(Server(info_server=server, info_memory=memory), URL)


@pytest.mark.parametrize(
    "memory",
    [
        b"maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n",  # which it never comes to
        b"maxmemory:100\r\nmaxmemory_policy:noeviction\r\n",
        Overloaded("no permission to ask"),
    ],
)
def test_a_server_that_will_do_is_taken(memory: object) -> None:
    check_server(Server(info_server=b"redis_version:7.0.15\r\n", info_memory=memory), URL)


def test_a_group_that_is_there_is_taken_and_what_redis_refuses_is_raised() -> None:
    ensure_group(Server(xgroup_create=b"OK"), URL)
    ensure_group(Server(xgroup_create=NoGroup("BUSYGROUP Consumer Group name already exists")), URL)
    with pytest.raises(Overloaded):
        ensure_group(Server(xgroup_create=Overloaded("full")), URL)
    with pytest.raises(NoGroup):
        ask(Server(xlen_work=NoGroup("gone")), "XLEN", "work")
