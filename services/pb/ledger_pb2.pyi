from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Ledger(_message.Message):
    __slots__ = ("tiles", "facts", "words")
    TILES_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    tiles: bytes
    facts: bytes
    words: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tiles: _Optional[bytes] = ..., facts: _Optional[bytes] = ..., words: _Optional[_Iterable[str]] = ...) -> None: ...
