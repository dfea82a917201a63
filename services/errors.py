"""The errors of the suite, one tree. No status codes here: only a server maps kinds to them.

    ServiceError
    ├── ConfigurationError      wrong settings or models file; raised at start, never crosses a wire
    ├── InvalidInput            the caller's request cannot be answered as it stands
    │   ├── UndecodableImage    the bytes are not an image that we read
    │   ├── ImageTooLarge       the header claims more pixels than are accepted
    │   ├── UnknownModel        no model or task of that name
    │   └── PayloadTooLarge     the message exceeds the limit of the link
    ├── Overloaded              admission limit or a bounded queue is full
    ├── DeadlineExceeded        the time that the caller gave is spent
    ├── Unavailable             the peer or the broker cannot be reached, or is closing
    ├── Rejected                the dead-letter verdict: this record killed its process twice
    └── Internal                a fault of ours: the backend raised, a message is malformed

Every message names the cause and, where there is one, the remedy. An error crosses a wire as `Failure(kind, message)`
and comes out as the same class; a kind that is unknown here (a newer peer's) comes out as `Internal`.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class ServiceError(Exception):
    """Root of the tree; `kind` is its name on the wire."""

    kind: ClassVar[str] = "internal"

    @property
    def message(self) -> str:
        """The text for the caller."""
        return str(self.args[0]) if self.args else self.kind


class ConfigurationError(ServiceError):
    """Settings, flags or the models file are wrong; the service does not start."""

    kind = "configuration"


class InvalidInput(ServiceError):
    """The request cannot be answered as it stands; sending it again is pointless."""

    kind = "invalid_input"


class UndecodableImage(InvalidInput):
    """The bytes are not an image that we read, or end too early."""

    kind = "undecodable_image"


class ImageTooLarge(InvalidInput):
    """The image's header claims more pixels than are accepted; nothing was decoded."""

    kind = "image_too_large"


class UnknownModel(InvalidInput):
    """There is no model or task of that name here."""

    kind = "unknown_model"


class PayloadTooLarge(InvalidInput):
    """The message exceeds the limit of the link."""

    kind = "payload_too_large"


class Overloaded(ServiceError):
    """A bounded queue is full; try again later, or add replicas."""

    kind = "overloaded"


class DeadlineExceeded(ServiceError):
    """The time that the caller gave is spent."""

    kind = "deadline_exceeded"


class Unavailable(ServiceError):
    """The peer or the broker cannot be reached, or is closing."""

    kind = "unavailable"


class Rejected(ServiceError):
    """The record is in the dead-letter topic: it killed its process twice when it ran alone."""

    kind = "rejected"


class Internal(ServiceError):
    """A fault of ours."""

    kind = "internal"


class Failure(NamedTuple):
    """An error as it crosses a wire."""

    kind: str
    message: str


_BY_KIND: dict[str, type[ServiceError]] = {
    cls.kind: cls
    for cls in (
        InvalidInput,
        UndecodableImage,
        ImageTooLarge,
        UnknownModel,
        PayloadTooLarge,
        Overloaded,
        DeadlineExceeded,
        Unavailable,
        Rejected,
        Internal,
    )
}


# Of a message in characters. It may quote what a stranger sent, and a gRPC status holds 16 KiB, percent-encoded.
_LONGEST = 1000


def to_failure(error: BaseException) -> Failure:
    """The crossing form of any exception; what is not ours becomes `internal`, with its class in the message."""
    kind, message = (
        (error.kind, error.message)
        if isinstance(error, ServiceError)
        else (Internal.kind, f"{type(error).__name__}: {error}")
    )
    if len(message) > _LONGEST:  # the cause begins it, the remedy ends it
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 3 :]}"
    return Failure(kind, message)


def from_failure(failure: Failure) -> ServiceError:
    """The error that crossed."""
    return _BY_KIND.get(failure.kind, Internal)(failure.message)
