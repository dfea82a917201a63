"""Whether a broker can be reached, asked once a second: a client library only says so when it is asked to do something."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_PERIOD_S = 1.0
_TIMEOUT_S = 1.0


def reachable(bootstrap: str, timeout: float = _TIMEOUT_S) -> bool:
    """Whether one of `host:port,host:port` accepts a connection. That is all a broker behind TLS shows to anybody."""
    for address in bootstrap.split(","):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout).close()
        except OSError:
            continue
        return True
    return False


class BrokerWatch:
    """Calls `lost` and `found` (on its thread) when the broker goes away and comes back; logs both."""

    def __init__(self, bootstrap: str, lost: Callable[[], None], found: Callable[[], None]) -> None:
        self._bootstrap = bootstrap
        self._lost = lost
        self._found = found
        self._stop = threading.Event()
        self.up = True
        self._thread = threading.Thread(target=self._run, name="broker-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def _run(self) -> None:
        since = 0.0
        while not self._stop.is_set():
            up = reachable(self._bootstrap)
            if up != self.up:
                self.up = up
                if up:
                    _log.info("the broker at %s is back after %.0f s", self._bootstrap, time.monotonic() - since)
                    self._found()
                else:
                    since = time.monotonic()
                    _log.warning("the broker at %s cannot be reached; calls fail until it is back", self._bootstrap)
                    self._lost()
            self._stop.wait(_PERIOD_S)

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT_S + 1)
