"""What comes to a door out of a broker: frames that somebody published, and requests of the protocol.

A record with the header `content-type: application/x-protobuf` is a `ModelInferRequest`, as gRPC would carry it. Any
other one is an encoded image, as a camera has it; with two headers, if it likes:

    task    what is to be done with it; of a door with one task, that one
    id      of the request; else its partition and offset

Who knows nothing of us can publish that, and reads answers from the topic of results (`services/transports`): the bytes
of a `ModelInferResponse` with its ledger, as gRPC's answer would be, or nothing and the header `failure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from services import wire
from services.errors import InvalidInput
from services.preprocess.server import INPUT, Door, Entrance
from services.transports.transport import Delivery, Response

TASK = "task"
ID = "id"


class Published:
    """A handler for a broker's listener."""

    def __init__(self, door: Door, tasks: Sequence[str], default: str, entrance: Entrance) -> None:
        """`default`: the task of who names none; empty: where `tasks` is one, that one."""
        self._door = door
        self._tasks = tuple(tasks)
        self._default = default or (self._tasks[0] if len(self._tasks) == 1 else "")
        self._entrance = entrance._replace(read=self.read)

    def __call__(self, delivery: Delivery) -> Future[Response]:
        """See `Handle`; never raises."""
        return self._door.handle(delivery, self._entrance)

    def read(self, delivery: Delivery) -> wire.InferRequest:
        """The request in a record. Raises `InvalidInput`."""
        headers = delivery.headers
        if headers.get(wire.CONTENT_TYPE) == wire.PROTOBUF:
            return wire.decode_request(delivery.payload)
        task = headers.get(TASK, b"").decode(errors="replace") or self._default
        if not task:
            raise InvalidInput(
                f"a frame without header '{TASK}' is for none of {', '.join(self._tasks)}; name one of them in that "
                "header, or start the door with --consume-task"
            )
        partition, offset = delivery.position or (0, 0)
        id_ = headers.get(ID, b"").decode(errors="replace") or f"{partition}-{offset}"
        images = np.empty(1, dtype=np.object_)
        images[0] = delivery.payload
        return wire.InferRequest(task, "", id_, {}, {INPUT: images}, ())
