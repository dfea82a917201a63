"""The partitions of a listener: what is in hand, what may be committed. Thread-safe; three kinds of threads use it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from services.transports.kafka_client import Position
from services.transports.kafka_offsets import PartitionOffsets, Suspicion


class Partition:
    """One assignment of one partition; a partition that comes back is another one."""

    def __init__(self, number: int, position: int, suspicion: Suspicion) -> None:
        self.number = number
        self.offsets = PartitionOffsets(position)
        self.suspicion = suspicion
        self.confirmed = position  # the broker's
        self.noted = False  # this process's start is in the metadata


class Partitions:
    """See `kafka_client.Membership`: it is told by the client library what comes and goes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[int, Partition] = {}
        self._in_hand = 0

    # --- as a member of the group ------------------------------------------------------------------------------------

    def revoked(self, partitions: Sequence[int]) -> Mapping[int, Position]:
        """What is still in hand is answered, but no longer committed by us: it is another's now."""
        with self._changed:
            positions = self._leaving(partitions)
            for number in partitions:
                self._held.pop(number, None)
            return positions

    def lost(self, partitions: Sequence[int]) -> None:
        """As `revoked`, with nothing to commit."""
        with self._changed:
            for number in partitions:
                self._held.pop(number, None)

    def committed(self, offsets: Mapping[int, int]) -> None:
        """The broker has these offsets."""
        with self._changed:
            for number, offset in offsets.items():
                partition = self._held.get(number)
                if partition is not None:
                    partition.confirmed = max(partition.confirmed, offset)

    # --- for the listener --------------------------------------------------------------------------------------------

    def get(self, number: int) -> Partition | None:
        """The assignment that is held now."""
        with self._changed:
            return self._held.get(number)

    def holds(self, partition: Partition) -> bool:
        """Whether this very assignment is held still."""
        with self._changed:
            return self._held.get(partition.number) is partition

    def add(self, number: int, position: int, suspicion: Suspicion) -> Partition:
        """A new assignment."""
        with self._changed:
            self._held[number] = partition = Partition(number, position, suspicion)
            return partition

    def forget_all(self) -> None:
        """The consumer is gone."""
        with self._changed:
            self._held.clear()

    @property
    def in_hand(self) -> int:
        """Records handed out and not finished, those of partitions that went included."""
        with self._changed:
            return self._in_hand

    def room(self, prefetch: int) -> int:
        """How many records may be handed out now. While any partition is suspicious, one at a time in this process:

        a record is only "alone" if nothing else that runs here could have been what killed it.
        """
        with self._changed:
            alone = any(p.offsets.position < p.suspicion.alone_until for p in self._held.values())
            return (1 if alone else prefetch) - self._in_hand

    def start(self, partition: Partition, offset: int) -> None:
        """A record is handed out."""
        with self._changed:
            partition.offsets.start(offset)
            self._in_hand += 1

    def release(self, partition: Partition, offset: int, *, done: bool) -> None:
        """It is out of hand; with `done`, answered, so that it may be committed."""
        with self._changed:
            if done:
                partition.offsets.finish(offset)
            self._in_hand -= 1
            self._changed.notify_all()

    def wake(self) -> None:
        """End the waits below."""
        with self._changed:
            self._changed.notify_all()

    def wait_change(self, timeout: float) -> None:
        """Until a record is out of hand, or `timeout` seconds passed."""
        with self._changed:
            self._changed.wait(timeout)

    def wait_empty(self, timeout: float) -> bool:
        """Until nothing is in hand; False when that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            return self._changed.wait_for(lambda: not self._in_hand, max(0.0, deadline - time.monotonic()))

    def running(self, partition: Partition) -> Position:
        """What to commit for a partition that stays."""
        with self._changed:
            return self._running(partition)

    def progress(self) -> dict[int, Position]:
        """What the broker has not confirmed yet."""
        with self._changed:
            return {
                number: self._running(partition)
                for number, partition in self._held.items()
                if partition.offsets.position > partition.confirmed
            }

    def leaving(self) -> dict[int, Position]:
        """What to commit when all partitions are given up, in order."""
        with self._changed:
            return self._leaving(list(self._held))

    @staticmethod
    def _running(partition: Partition) -> Position:
        offsets = partition.offsets
        return Position(offsets.position, partition.suspicion.running(offsets.position, offsets.upto).encode())

    def _leaving(self, numbers: Sequence[int]) -> dict[int, Position]:
        held = [self._held[number] for number in numbers if number in self._held]
        return {
            p.number: Position(p.offsets.position, p.suspicion.leaving(p.offsets.position, p.offsets.upto).encode())
            for p in held
            if p.noted
        }
