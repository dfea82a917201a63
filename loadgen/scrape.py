"""What a service answers to a scrape, as far as the load generator asks: a few of its series.

The text format: https://prometheus.io/docs/instrumenting/exposition_formats/. Names are as services.metrics has them; a
reader depends on the names, not on the writer.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from loadgen.errors import PlanError

_SERVICE = re.compile(r'^beyond_service_info\{.*?service="([^"]*)"', re.MULTILINE)
_PATH = "/metrics"
_ANSWER_S = 5.0
_MOST_BYTES = 16 << 20


class Served(NamedTuple):
    """Requests that a service has answered well so far."""

    service: str
    requests: float


def check_url(url: str) -> None:
    """Raises `PlanError` for what is no address of metrics."""
    try:
        parts = urlsplit(url)
        right = parts.scheme == "http" and bool(parts.hostname) and parts.port is not None
    except ValueError:  # a port that is no number
        right = False
    if not right:
        raise PlanError(f"metrics '{url}' are not at http://host:port/metrics")


def read(url: str, seconds: float = _ANSWER_S) -> str:
    """Ask now, directly, whatever proxy there is for others; the answer is whole within `seconds`.

    Raises `OSError`; `ValueError` for no proper answer.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    connection.connect()
    late: list[bool] = []
    # A socket's own time-out is for each piece; who sends byte by byte would keep us for ever.
    clock = threading.Timer(seconds, _hang_up, (connection.sock, late))
    clock.daemon = True
    clock.start()
    try:
        connection.request("GET", parts.path or _PATH, headers={"Accept": "text/plain"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise ValueError(f"the answer is {answer.status} {answer.reason}")
        whole = answer.read(_MOST_BYTES + 1)
        if len(whole) > _MOST_BYTES:
            raise ValueError(f"the answer does not end within {_MOST_BYTES >> 20} MiB")
        text = whole.decode("utf-8", "replace")
        if answer.length or not text.endswith("\n"):  # http.client does not mind that a body ends early
            raise ValueError("the answer is cut off")
    except http.client.HTTPException as error:
        why = f"does not end within {seconds:g} s" if late else f"is no HTTP ({error!r})"
        raise ValueError(f"the answer {why}") from None
    except (OSError, ValueError):
        if late:
            raise ValueError(f"the answer does not end within {seconds:g} s") from None
        raise
    finally:
        clock.cancel()
        connection.close()
    return text


def _hang_up(connected: socket.socket, late: list[bool]) -> None:
    late.append(True)
    with contextlib.suppress(OSError):  # it has ended meanwhile
        connected.shutdown(socket.SHUT_RDWR)


def service_of(text: str) -> str | None:
    """Which service of this suite answered; None for anything else."""
    found = _SERVICE.search(text)
    return None if found is None else found[1]


def served(text: str) -> Served:
    """What a service says that it has answered well. Raises `ValueError` for what is no service of this suite."""
    service = service_of(text)
    if service is None:
        raise ValueError("these are not the metrics of a service of this suite")
    good = 'outcome="ok"'
    return Served(service, sum(value for labels, value in samples(text, "beyond_requests_total") if good in labels))


def samples(text: str, name: str) -> Iterator[tuple[str, float]]:
    """(labels as they are written, value) of each series of this name. Raises `ValueError` for what is no number."""
    for line in text.splitlines():
        if not line.startswith(name):
            continue
        rest = line[len(name) :]
        if rest.startswith("{"):
            labels, _, value = rest[1:].rpartition("}")
        elif rest.startswith(" "):
            labels, value = "", rest
        else:
            continue  # another name that begins so
        if not value.strip():
            raise ValueError(f"'{line}' has no number")
        yield labels, float(value.split()[0])
