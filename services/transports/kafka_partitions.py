"""The partitions of a listener: what is in hand, what may be committed. Thread-safe; three kinds of threads use it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from services.transports.kafka_client import Position
from services.transports.kafka_offsets import PartitionOffsets, Starts, Suspicion


class Partition:
    """One assignment of one partition; a partition that comes back is another one."""

    def __init__(self, number: int, position: int, suspicion: Suspicion) -> None:
        self.number = number
        self.offsets = PartitionOffsets(position)
        self.suspicion = suspicion
        self.confirmed = position  # the broker's
        self.written_upto = position  # how far records were handed out when that was written last
        self.noted = False  # this process's start is in the metadata
        self.alone_at: int | None = None  # a record whose start alone is in the metadata
        self.next = position  # the offset of the record that is to come


class Partitions:
    """See `kafka_client.Membership`: it is told by the client library what comes and goes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._new: set[int] = set()  # assigned, and not taken up yet
        self._held: dict[int, Partition] = {}
        self._in_hand = 0
        self._changes = 0
        self._lost = False

    # --- as a member of the group ------------------------------------------------------------------------------------

    def assigned(self, partitions: Sequence[int]) -> None:
        """To be taken up by the listener, before any of their records."""
        with self._changed:
            self._new.update(number for number in partitions if number not in self._held)

    def revoked(self, partitions: Sequence[int]) -> Mapping[int, Position]:
        """What is still in hand is answered, but no longer committed by us: it is another's now."""
        with self._changed:
            positions = self._leaving(partitions)
            self._drop(partitions)
            return positions

    def lost(self, partitions: Sequence[int]) -> None:
        """As `revoked`, with nothing to commit."""
        with self._changed:
            self._drop(partitions)
            self._lost = True

    def committed(self, offsets: Mapping[int, int]) -> None:
        """The broker has these offsets."""
        with self._changed:
            for number, offset in offsets.items():
                partition = self._held.get(number)
                if partition is not None:
                    partition.confirmed = max(partition.confirmed, offset)
                    if partition.alone_at is not None and offset > partition.alone_at:
                        partition.alone_at = None

    # --- for the listener --------------------------------------------------------------------------------------------

    def get(self, number: int) -> Partition | None:
        """The assignment that is held now."""
        with self._changed:
            return self._held.get(number)

    def holds(self, partition: Partition) -> bool:
        """Whether this very assignment is held still."""
        with self._changed:
            return self._held.get(partition.number) is partition

    def new(self) -> list[int]:
        """Partitions that are to be taken up."""
        with self._changed:
            return sorted(self._new)

    def add(self, number: int, position: int, suspicion: Suspicion) -> Partition | None:
        """Take a new partition up; None where it has gone to somebody else meanwhile."""
        with self._changed:
            if number not in self._new:
                return None
            self._new.discard(number)
            self._held[number] = partition = Partition(number, position, suspicion)
            return partition

    def forget_all(self) -> None:
        """The consumer is gone."""
        with self._changed:
            self._new.clear()
            self._held.clear()
            self._lost = False

    @property
    def lost_any(self) -> bool:
        """Whether partitions were lost since `forget_all`."""
        with self._changed:
            return self._lost

    @property
    def none(self) -> bool:
        """Whether no partition is held, nor to be taken up."""
        with self._changed:
            return not (self._held or self._new)

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
            self._notify()

    def written(self, positions: Mapping[int, Position]) -> None:
        """The broker has these, of partitions that are held still: this process's start on them, records, and so on."""
        with self._changed:
            for number, position in positions.items():
                partition = self._held.get(number)
                if partition is None:
                    continue
                starts = Starts.parse(position.metadata)
                partition.noted = True
                partition.confirmed = max(partition.confirmed, position.offset)
                partition.written_upto = starts.upto
                partition.alone_at = position.offset if starts.alone else None

    @property
    def changes(self) -> int:
        """Counts what `wait_change` waits for."""
        with self._changed:
            return self._changes

    def wake(self) -> None:
        """End the waits below."""
        with self._changed:
            self._notify()

    def wait_change(self, since: int, timeout: float) -> None:
        """Until `changes` is not `since` any more: a record is out of hand; `timeout` seconds at the most."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != since, timeout)

    def wait_empty(self, timeout: float) -> bool:
        """Until nothing is in hand; False when that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            return self._changed.wait_for(lambda: not self._in_hand, max(0.0, deadline - time.monotonic()))

    def unanswered(self) -> dict[int, int]:
        """Of each partition that is held, the lowest offset that is not answered."""
        with self._changed:
            return {number: partition.offsets.position for number, partition in self._held.items()}

    def running(self, partition: Partition) -> Position:
        """What to commit for a partition that stays."""
        with self._changed:
            return self._running(partition)

    def progress(self) -> dict[int, Position]:
        """What the broker has not confirmed yet, or what has been handed out since."""
        with self._changed:
            positions = {}
            for number, partition in self._held.items():
                offsets = partition.offsets
                if offsets.position > partition.confirmed or offsets.upto > partition.written_upto:
                    positions[number] = self._running(partition)
                    partition.written_upto = offsets.upto
            return positions

    def acquitted(self) -> dict[int, Position]:
        """What to commit before anything else is started: records that ran alone, and did not kill."""
        with self._changed:
            return {
                number: self._running(partition)
                for number, partition in self._held.items()
                if partition.alone_at is not None and partition.offsets.position > partition.alone_at
            }

    def leaving(self) -> dict[int, Position]:
        """What to commit when all partitions are given up, in order."""
        with self._changed:
            return self._leaving(list(self._held))

    def _notify(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    def _drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._new.discard(number)
            self._held.pop(number, None)

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
