"""Where the parts of a run meet: part 1 listens, the others come to it, and nobody goes on before all are there.

Each part keeps one TCP connection to part 1 for the whole run, so one that ends is known of at once; one that hangs is
known of at a deadline. Whatever happens to one part happens to the run.

Parts that begin a load together begin at one instant of part 1's monotonic clock. It is told to each on its own clock:
part 1 asks for it a few times, and where the quickest answer took r, the answer's clock differs from the middle of that
time by no more than r/2 (F. Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989). So neither
wall clocks nor what keeps them right are of any matter. The bound does not have how much both clocks drift apart from
then until the begin, half a second: some 0.02 ms at 50 ppm.

A line of JSON each way. Nothing secret crosses, and nobody is trusted: who does not say at once which part of this very
plan it is, is sent away.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import selectors
import socket
import time
from typing import Any, NamedTuple, Protocol

from loadgen.errors import GeneratorError, PlanError
from loadgen.parts import Part
from services.accounting import monotonic_ns

_HELLO_S = 2.0
_RETRY_S = 0.2
_ASKED = 8  # times, for the other's clock
_LEAD_NS = 300_000_000  # for the word to reach every part, and in it every sender, before all begin
_MOST_BYTES = 4096
# A machine that is gone says nothing: the system asks after it (tcp(7)), seconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Begin(NamedTuple):
    """When to begin, on the monotonic clock of this process; `skew_ns`: at most so far from when part 1 does."""

    start_ns: int
    skew_ns: int


class Rendezvous(Protocol):
    """Of one part. `run`: a word that all parts of this run have, and no other run."""

    part: Part
    run: str

    def meet(self, where: str) -> None:
        """Until all parts are at `where`. Raises `GeneratorError` where one is gone, or stays away."""
        ...

    def begin(self, where: str) -> Begin:
        """As `meet`; then all begin at one instant."""
        ...

    def close(self) -> None:
        """Leave; parts that still wait for this one learn of it."""
        ...


def open_rendezvous(part: Part, address: str, agreed: str, patience_s: float) -> Rendezvous:
    """Come together, within `patience_s`. `address`: HOST:PORT of part 1. `agreed`: see `parts.agreement`.

    Later, who is first at a place waits for the others as long as that, and once more as long as the run took so far.
    Raises `PlanError` for an address that cannot be, and for parts of another plan; `GeneratorError` as `meet`.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise PlanError(f"--meet '{address}' is not HOST:PORT, where part 1 listens")
    if not 0 < patience_s < float("inf"):
        raise PlanError(f"--meet-s is {patience_s:g}; give the seconds that parts may wait for each other")
    host = host.removeprefix("[").removesuffix("]")
    if part.number == 1:
        return _First(part, host, int(port), agreed, patience_s)
    return _Other(part, host, int(port), agreed, patience_s)


class _Gone(Exception):
    """The other end is closed, or says what cannot be."""


class _Line:
    """A connection that carries an object per line."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._held = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # as Linux has them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def say(self, deadline: float, **message: object) -> None:
        """Raises `_Gone`, `TimeoutError`."""
        self._wait_until(deadline)
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise
        except OSError:
            raise _Gone from None

    def hear(self, deadline: float) -> dict[str, Any]:
        """Raises `_Gone`, `TimeoutError`."""
        while b"\n" not in self._held:
            if len(self._held) > _MOST_BYTES:
                raise _Gone
            self._wait_until(deadline)
            try:
                piece = self.socket.recv(_MOST_BYTES)
            except TimeoutError:
                raise
            except OSError:
                raise _Gone from None
            if not piece:
                raise _Gone
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            raise _Gone from None
        if not isinstance(message, dict):
            raise _Gone
        return message

    def _wait_until(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.socket.settimeout(left)

    def close(self) -> None:
        self.socket.close()


class _Patience:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._opened = time.monotonic()

    def deadline(self) -> float:
        """Loads of an hour may differ by minutes: who took long may be waited for long."""
        now = time.monotonic()
        return now + self.seconds + (now - self._opened)


class _First:
    """Part 1: the others come to it."""

    def __init__(self, part: Part, host: str, port: int, agreed: str, patience_s: float) -> None:
        self.part = part
        self.run = secrets.token_hex(8)
        self._patience = _Patience(patience_s)
        self._lines: dict[int, _Line] = {}
        try:
            if _loopback(host):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = socket.create_server((host, port), family=family)
            elif socket.has_dualstack_ipv6():
                # Its name may be that of a Service, which leads here, but is no address of this machine.
                listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                listener = socket.create_server(("", port))
        except OSError as error:
            raise PlanError(f"part 1 cannot listen at port {port}: {error.strerror or error}; choose another") from None
        with listener:
            try:
                self._gather(listener, agreed)
            except BaseException:
                self.close()
                raise

    def _gather(self, listener: socket.socket, agreed: str) -> None:
        deadline = time.monotonic() + self._patience.seconds
        while missing := sorted(set(range(2, self.part.of + 1)) - set(self._lines)):
            listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                line = _Line(listener.accept()[0])
            except TimeoutError:
                names = ", ".join(map(str, missing))
                raise GeneratorError(
                    f"of {self.part.of} parts, {names} did not come within {self._patience.seconds:g} s; start all of "
                    "them, with the same --meet, or give them longer (--meet-s)"
                ) from None
            hello_by = time.monotonic() + _HELLO_S
            try:
                number, refused = self._admit(line.hear(hello_by), agreed)
                if refused:
                    line.say(hello_by, refused=refused)
                else:
                    line.say(hello_by, run=self.run)
                    self._lines[number] = line
                    continue
            except (_Gone, TimeoutError):
                pass  # a stranger
            line.close()

    def _admit(self, hello: dict[str, Any], agreed: str) -> tuple[int, str]:
        """Its number, and why it has to go again. Raises `_Gone` for a stranger."""
        number, of = hello.get("part"), hello.get("of")
        if type(number) is not int or type(of) is not int:
            raise _Gone
        if of != self.part.of:
            return number, f"part 1 is one of {self.part.of} parts, and not of {of}; give all parts the same N"
        if hello.get("agreed") != agreed:
            return number, "part 1 has another plan, seed, trace, or other files; give all parts the same ones"
        if not 2 <= number <= of or number in self._lines:
            return number, f"part {number} is there already; give each part its own number"
        return number, ""

    def meet(self, where: str) -> None:
        """See `Rendezvous`."""
        deadline = self._all_at(where)
        for number in self._lines:
            self._say(number, deadline, go=where)

    def begin(self, where: str) -> Begin:
        """See `Rendezvous`."""
        deadline = self._all_at(where)
        clocks = {number: self._clock_of(number, deadline) for number in self._lines}
        start = monotonic_ns() + _LEAD_NS
        for number, (ahead_ns, skew_ns) in clocks.items():
            self._say(number, deadline, start_ns=start + ahead_ns, skew_ns=skew_ns)
        return Begin(start, 0)

    def _clock_of(self, number: int, deadline: float) -> tuple[int, int]:
        """How far its clock is ahead of this one, and by how much that may be wrong; ns."""
        best: tuple[int, int] | None = None
        for _ in range(_ASKED):
            asked = monotonic_ns()
            self._say(number, deadline, clock=True)
            told = self._hear(number, deadline).get("clock_ns")
            took = monotonic_ns() - asked
            if type(told) is not int:
                raise self._failed(f"part {number} said something that nobody asked it")
            if best is None or (took + 1) // 2 < best[1]:
                best = told - (asked + took // 2), (took + 1) // 2
        assert best is not None  # noqa: S101 # it was asked more than once
        return best

    def _all_at(self, where: str) -> float:
        """Until all are there; the deadline of what is left to say."""
        deadline = self._patience.deadline()
        with selectors.DefaultSelector() as selector:
            for number, line in self._lines.items():
                selector.register(line.socket, selectors.EVENT_READ, number)
            left = set(self._lines)
            while left:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    names = ", ".join(map(str, sorted(left)))
                    raise self._failed(f"part {names} did not come to '{where}' within its time")
                for key, _ in ready:
                    at = self._hear(key.data, deadline).get("at")
                    if at != where or key.data not in left:
                        raise self._failed(f"part {key.data} is at '{at}', and part 1 at '{where}'")
                    left.remove(key.data)
        return deadline

    def _hear(self, number: int, deadline: float) -> dict[str, Any]:
        try:
            return self._lines[number].hear(deadline)
        except _Gone:
            raise self._failed(f"part {number} left the run") from None
        except TimeoutError:
            raise self._failed(f"part {number} stopped in the middle of what it said") from None

    def _say(self, number: int, deadline: float, **message: object) -> None:
        try:
            self._lines[number].say(deadline, **message)
        except (_Gone, TimeoutError):
            raise self._failed(f"part {number} left the run") from None

    def _failed(self, why: str) -> GeneratorError:
        """Tell the others, before they find out for themselves."""
        for line in self._lines.values():
            with contextlib.suppress(_Gone, TimeoutError):
                line.say(time.monotonic() + _HELLO_S, failed=why)
        self.close()
        return _no_result(why)

    def close(self) -> None:
        """See `Rendezvous`."""
        lines, self._lines = self._lines, {}
        for line in lines.values():
            line.close()


class _Other:
    """Any part but the first."""

    def __init__(self, part: Part, host: str, port: int, agreed: str, patience_s: float) -> None:
        self.part = part
        self._patience = _Patience(patience_s)
        deadline = time.monotonic() + patience_s
        self._line = _Line(_connected(host, port, deadline, patience_s))
        try:
            self._line.say(deadline, part=part.number, of=part.of, agreed=agreed)
            answer = self._line.hear(deadline)
        except (_Gone, TimeoutError):
            self.close()
            raise GeneratorError(f"who listens at {host}:{port} is not part 1 of this run, or it is gone") from None
        if "refused" in answer:
            self.close()
            raise PlanError(f"{part}: {answer['refused']}")
        self.run = str(answer.get("run"))

    def meet(self, where: str) -> None:
        """See `Rendezvous`."""
        self._reach(where)

    def begin(self, where: str) -> Begin:
        """See `Rendezvous`."""
        told = self._reach(where)
        start, skew = told.get("start_ns"), told.get("skew_ns")
        if type(start) is not int or type(skew) is not int:
            raise self._failed("part 1 goes on without a begin")
        return Begin(start, skew)

    def _reach(self, where: str) -> dict[str, Any]:
        deadline = self._patience.deadline()
        try:
            self._line.say(deadline, at=where)
            while True:
                message = self._line.hear(deadline)
                if "clock" not in message:
                    break
                self._line.say(deadline, clock_ns=monotonic_ns())
        except _Gone:
            raise self._failed("part 1 left the run") from None
        except TimeoutError:
            raise self._failed(f"part 1 said nothing at '{where}' within its time") from None
        if "failed" in message:
            raise self._failed(str(message["failed"]))
        return message

    def _failed(self, why: str) -> GeneratorError:
        self.close()
        return _no_result(why)

    def close(self) -> None:
        """See `Rendezvous`."""
        self._line.close()


def _no_result(why: str) -> GeneratorError:
    return GeneratorError(f"{why}; without it, what the others send is not the plan. Its own output says what happened")


def _connected(host: str, port: int, deadline: float, patience_s: float) -> socket.socket:
    """Part 1 may start later, and its name be known later."""
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(0.001, min(_HELLO_S, left)))
        except OSError as error:
            if time.monotonic() + _RETRY_S > deadline:
                raise GeneratorError(
                    f"part 1 was not to be reached at {host}:{port} within {patience_s:g} s ({error.strerror or error})"
                ) from None
        time.sleep(_RETRY_S)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
