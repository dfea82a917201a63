"""W3C trace context: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_LIMIT = 512  # characters that must be passed on


class Context(NamedTuple):
    """Who one is in which trace. Ids: 16 and 8 bytes, none of them all zeros."""

    trace_id: bytes
    span_id: bytes
    sampled: bool
    state: str = ""


def _match(headers: Mapping[str, bytes]) -> re.Match[bytes] | None:
    value = headers.get("traceparent")
    match = None if value is None else _TRACEPARENT.fullmatch(value)
    return None if match is None or (match[5] and match[1] == b"00") else match


def sampled(headers: Mapping[str, bytes]) -> bool | None:
    """Whether the context in `headers` is sampled; None where there is none. `parse` tells more, at more cost."""
    match = _match(headers)
    return None if match is None else bool(int(match[4], 16) & 1)


def sampled_trace(headers: Mapping[str, bytes]) -> str | None:
    """The trace of a sampled context in `headers`, in hexadecimal: that of any other is nowhere to be found."""
    match = _match(headers)
    return match[2].decode() if match is not None and int(match[4], 16) & 1 else None


def parse(headers: Mapping[str, bytes]) -> Context | None:
    """The context in `headers`; None where there is none, or it is malformed: then a trace begins here."""
    match = _match(headers)
    if match is None:
        return None
    _, trace, span, flags, _ = match.groups()
    state = headers.get("tracestate", b"")
    if len(state) > _STATE_LIMIT or not all(0x20 <= byte <= 0x7E for byte in state):
        state = b""
    return Context(
        bytes.fromhex(trace.decode()), bytes.fromhex(span.decode()), bool(int(flags, 16) & 1), state.decode("ascii")
    )
