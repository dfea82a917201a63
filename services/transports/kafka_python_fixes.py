"""What kafka-python (seen with 3.0.12) gets wrong, put right from outside, through what it lets one replace."""

from __future__ import annotations

import ssl
from typing import Any

from kafka import errors
from kafka.coordinator.base import MemberState
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport


class ClosingSocket(KafkaNetSocket):  # type: ignore[misc] # the library has no types
    """The library's way to make a connection, but for what it forgets: one that fails leaves its socket open.

    The class registers itself with the library, under the scheme of a "proxy" that is none.
    """

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        """Connect, or close."""
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:  # a time-out and an abandoned task included
            sock.close()
            raise


class HandshakeFailed(errors.KafkaConnectionError):  # type: ignore[misc] # the library has no types
    """Of TLS."""


class _LastWords:
    """What arrives together with the connection's end is read; the library drops it, a refusal's reason say."""

    def _sock_recv(self) -> Any:
        data, error = super()._sock_recv()  # type: ignore[misc] # of the class beside it
        return data, None if data else error  # the end is there the next time, too


class _Plain(_LastWords, KafkaTCPTransport):  # type: ignore[misc] # the library has no types
    """Without TLS."""


class _BoundedHandshake(_LastWords, KafkaSSLTransport):  # type: ignore[misc] # the library has no types
    """TLS with a peer that may say nothing. The library would wait for ever, and leave the socket open."""

    async def handshake_until(self, timeout_at: float | None) -> None:
        """Raises `HandshakeFailed`."""
        try:
            while True:
                try:
                    self._sock.do_handshake()
                except ssl.SSLWantReadError:
                    await self._net.wait_read(self._sock, timeout_at=timeout_at)
                except ssl.SSLWantWriteError:
                    await self._net.wait_write(self._sock, timeout_at=timeout_at)
                else:
                    return
        except BaseException as error:
            self._sock.close()
            if isinstance(error, (OSError, errors.KafkaError)):
                raise HandshakeFailed(_tls_reason(error)) from None
            raise


def _tls_reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    return f"TLS: {error or 'the peer closed the connection'}"


class TalkativeConnections(KafkaConnectionManager):  # type: ignore[misc] # the library has no types
    """The library's connections, but for what it keeps to itself: why one that was made came to nothing.

    All that it says is that it "is unable to bootstrap".
    """

    def __init__(self, net: Any, **configs: Any) -> None:
        super().__init__(net, **configs)
        self._reached: set[Any] = set()  # nodes that TCP, and TLS where it is asked for, got through to
        self.ended: BaseException | None = None  # how the last connection to such a node did; None where one stands

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        self._reached.discard(node.node_id)
        sock = await create_connection(
            self._net,
            node.host,
            node.port,
            self.config["socket_options"],
            proxy_url=self.config["proxy_url"],
            timeout_at=timeout_at,
        )
        if not self.ssl_enabled:
            transport = _Plain(self._net, sock, host=node.host)
        else:
            transport = _BoundedHandshake(self._net, sock, host=node.host, ssl_context=self.config["ssl_context"])
            await transport.handshake_until(timeout_at)
        self._reached.add(node.node_id)
        return transport

    async def _connect(self, node: Any, conn: Any, **options: Any) -> None:
        def ended(error: BaseException) -> None:
            said_why = isinstance(error, (HandshakeFailed, errors.BrokerResponseError))
            # Once the broker has answered, it and this client speak the same protocol: it is away, then.
            closed = node.node_id in self._reached and not self.bootstrapped
            self.ended = error if said_why or (closed and not isinstance(error, errors.KafkaTimeoutError)) else None

        conn.close_future.add_errback(ended)
        await super()._connect(node, conn, **options)
        if self.bootstrapped and conn.connected:
            self.ended = None


class RememberedJoins:
    """A group's joins, none of which is forgotten.

    The library's join goes on when `poll` returns before it is through. Where it is through before the next `poll`, the
    library begins another one; or, where its cause was a change of the topic's partitions or of the subscription, which
    is seen to by then, none, and goes by what it had before. That leaves a member without partitions that sends no
    heartbeat and says nothing. The Java client looks for a join that it has begun (`rejoinNeededOrPending`); so do
    these two replacements.
    """

    def __init__(self, coordinator: Any) -> None:
        """Replaces two methods of a consumer's coordinator."""
        self._coordinator = coordinator
        self._needed = coordinator.need_rejoin
        self._attempt = coordinator._do_join_and_sync_async
        self._joined: tuple[Any, bytes] | None = None  # the generation, and what is assigned to this member in it
        coordinator.need_rejoin = self.need_rejoin
        coordinator._do_join_and_sync_async = self.join_and_sync

    def need_rejoin(self) -> bool:
        """Also while a join that was begun has not been taken note of."""
        return bool(self._coordinator.rejoining or self._needed())

    async def join_and_sync(self) -> bytes:
        """The assignment of a join: the last one's, where it succeeded and was not taken note of."""
        if self._joined is not None and self._coordinator.state is MemberState.REBALANCING:
            generation, assignment = self._joined
            if generation is self._coordinator._generation:
                return assignment
        self._joined = None
        assignment = bytes(await self._attempt())
        self._joined = (self._coordinator._generation, assignment)
        return assignment
