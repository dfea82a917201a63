"""Structured logs on stderr: one JSON object per line, or text for people. Extras (`trace_id`, ...) are fields."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time

# What a LogRecord has by itself; everything else in it was given as `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One object per line: time (RFC 3339, UTC), level, logger, service, message, extras, exception."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "service": self._service,
            "message": record.getMessage(),
        }
        entry.update({name: value for name, value in vars(record).items() if name not in _OWN})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class Throttle(logging.Filter):
    """Lets `burst` lines of a kind through per second: an outage under load must not become an outage of the logs.

    A kind is a logger, a level and a message before its arguments. The next line of a kind says with `left_out` how
    many were not shown.
    """

    def __init__(self, burst: int = 10) -> None:
        super().__init__()
        self._burst = burst
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, int, str], tuple[int, int, int]] = {}  # kind -> (second, shown, left out)

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`; time is the record's own."""
        kind = (record.name, record.levelno, str(record.msg))
        now = int(record.created)
        with self._lock:
            second, shown, left_out = self._seconds.get(kind, (now, 0, 0))
            if second != now:
                shown = 0
            if shown >= self._burst:
                self._seconds[kind] = (now, shown, left_out + 1)
                return False
            self._seconds[kind] = (now, shown + 1, 0)
        if left_out:
            record.left_out = left_out
        return True


def configure(service: str, level: str, log_format: str) -> None:
    """Send the process's logs to stderr; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter(service)
        if log_format == "json"
        else logging.Formatter(f"%(asctime)s %(levelname)-7s {service} %(name)s: %(message)s")
    )
    handler.addFilter(Throttle())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def trace_extra(traceparent: bytes | None) -> dict[str, str]:
    """`extra` for a log line about a request with this W3C `traceparent` header; empty without one."""
    if traceparent is None:
        return {}
    parts = traceparent.decode("ascii", "replace").split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) == 4 else {}
