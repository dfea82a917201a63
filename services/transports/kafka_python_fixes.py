"""What kafka-python (seen with 3.0.12) gets wrong, put right from outside, through what it lets one replace."""

from __future__ import annotations

from typing import Any

from kafka.coordinator.base import MemberState
from kafka.net.inet import KafkaNetSocket


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
