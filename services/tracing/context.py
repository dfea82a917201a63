"""W3C trace context: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_LIMIT = 512  # characters that must be passed on


class Context(NamedTuple):
    """Who one is in which trace. Ids: 16 and 8 bytes, none of them all zeros."""

    trace_id: bytes
    span_id: bytes
    sampled: bool
    state: str = ""


def parse(headers: Mapping[str, bytes]) -> Context | None:
    """The context in `headers`; None where there is none, or it is malformed: then a trace begins here."""
    value = headers.get("traceparent")
    match = _TRACEPARENT.fullmatch(value) if value is not None else None
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest):
        return None
    trace_id, span_id = bytes.fromhex(trace.decode()), bytes.fromhex(span.decode())
    if not any(trace_id) or not any(span_id):
        return None
    state = headers.get("tracestate", b"")
    if len(state) > _STATE_LIMIT or not all(0x20 <= byte <= 0x7E for byte in state):
        state = b""
    return Context(trace_id, span_id, bool(int(flags, 16) & 1), state.decode("ascii"))
