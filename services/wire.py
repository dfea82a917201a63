"""Messages <-> bytes: tensors as Open Inference Protocol v2 messages, tiles as a ledger.

Large tensors never pass through the protobuf library. A message's small fields are encoded by it and the tensor's bytes
are joined on behind as fields of their own (protobuf merges concatenated encodings, and fields may come in any order);
on the way in they are found by walking the top-level fields and handed out as views of the payload. That saves two
copies of the tensor each way, and fresh pages for each are what large messages cost
(`tests/benchmarks/bench_wire.py` has the ratios).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from services.accounting import TEXTS, Fact, Stage, Tile
from services.errors import Internal, InvalidInput
from services.messages import Array, Tensors
from services.pb import ledger_pb2, open_inference_pb2

Buffer = bytes | memoryview
Parameter = bool | int | float | str

NUMPY_OF: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
DATATYPE_OF: dict[np.dtype[Any], str] = {dtype: name for name, dtype in NUMPY_OF.items()}

# Which field of InferTensorContents holds a datatype (FP16 has none: it travels raw only).
_CONTENTS_FIELD: dict[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

_RAW_INPUT = 7  # field number of raw_input_contents
_RAW_OUTPUT = 6  # field number of raw_output_contents
LEDGER_PARAMETER = "ledger"
# What says, beside a message in a broker, that it is one.
CONTENT_TYPE = "content-type"
PROTOBUF = b"application/x-protobuf"
VERSION = "1"  # of every model: there is one at a time
# Each costs some hundred bytes here and two on the wire: a message of 16 MiB could hold millions, to fill the memory.
_MOST_FIELDS = 10_000
_MOST_ELEMENTS = 10_000  # of a BYTES input; an answer may have several for each of them


class InferRequest(NamedTuple):
    """A decoded ModelInferRequest. Elements of BYTES tensors are `bytes` or views of the payload."""

    model: str
    version: str
    id: str
    parameters: dict[str, Parameter]
    inputs: Tensors
    outputs: tuple[str, ...]  # names that were asked for; empty: all


class InferResponse(NamedTuple):
    """A decoded ModelInferResponse; `tiles` is its ledger, empty where there is none."""

    model: str
    version: str
    id: str
    parameters: dict[str, Parameter]
    outputs: Tensors
    tiles: tuple[Tile, ...]


# --- tensors ---------------------------------------------------------------------------------------------------------


def encode_request(
    model: str,
    id_: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Parameter] | None = None,
) -> bytes:
    """A ModelInferRequest, tensors in `raw_input_contents`."""
    head = open_inference_pb2.ModelInferRequest(model_name=model, id=id_)
    for key, value in (parameters or {}).items():
        _set_parameter(head.parameters[key], value)
    for name in outputs:
        head.outputs.add(name=name)
    parts: list[Buffer] = [b""]
    for name, array in inputs.items():
        head.inputs.add(name=name, datatype=datatype(array), shape=array.shape)
        parts.extend(_raw_field(_RAW_INPUT, array))
    parts[0] = head.SerializeToString()
    return b"".join(parts)


def encode_response(model: str, id_: str, outputs: Mapping[str, Array], version: str = VERSION) -> bytes:
    """A ModelInferResponse, tensors in `raw_output_contents`."""
    head = open_inference_pb2.ModelInferResponse(model_name=model, model_version=version, id=id_)
    parts: list[Buffer] = [b""]
    for name, array in outputs.items():
        head.outputs.add(name=name, datatype=datatype(array), shape=array.shape)
        parts.extend(_raw_field(_RAW_OUTPUT, array))
    parts[0] = head.SerializeToString()
    return b"".join(parts)


def decode_request(payload: bytes) -> InferRequest:
    """The request of `payload`. Raises `InvalidInput` that names the tensor and what is wrong with it."""
    head, raws = _split(payload, _RAW_INPUT, open_inference_pb2.ModelInferRequest())
    return InferRequest(
        head.model_name,
        head.model_version,
        head.id,
        _parameters(head.parameters),
        _tensors(head.inputs, raws, "input"),
        tuple(output.name for output in head.outputs),
    )


def decode_response(payload: bytes) -> InferResponse:
    """The response of `payload`, ledger included. Raises `Internal`: the caller is never at fault for it."""
    try:
        head, raws = _split(payload, _RAW_OUTPUT, open_inference_pb2.ModelInferResponse())
        outputs = _tensors(head.outputs, raws, "output")
    except InvalidInput as error:
        raise Internal(f"the peer's response is malformed: {error.message}") from error
    parameters = _parameters(head.parameters)
    ledger = parameters.pop(LEDGER_PARAMETER, None)
    tiles = decode_ledger(base64.b64decode(ledger)) if isinstance(ledger, str) else ()
    return InferResponse(head.model_name, head.model_version, head.id, parameters, outputs, tiles)


def datatype(array: Array) -> str:
    """The protocol's name of the array's dtype. Raises `InvalidInput` where it has none."""
    try:
        return DATATYPE_OF[array.dtype]
    except KeyError:
        raise InvalidInput(f"dtype {array.dtype} has no datatype in the Open Inference Protocol") from None


def _raw_field(number: int, array: Array) -> list[Buffer]:
    """The encoded field `number` that holds the array's raw bytes, in parts."""
    if array.dtype == np.object_:
        elements: list[Buffer] = []
        size = 0
        for element in array.ravel():
            elements.append(len(element).to_bytes(4, "little"))
            elements.append(element)
            size += 4 + len(element)
        return [_tag(number, size), *elements]
    data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
    return [_tag(number, len(data)), data]


def _tag(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited field (wire type 2) with a number below 16."""
    out = bytearray([number << 3 | 2])
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def _split(payload: bytes, raw_field: int, head: Any) -> tuple[Any, list[memoryview]]:
    """Parse all but the raw fields into `head`; the raw fields come back as views of `payload`, in order."""
    view = memoryview(payload)
    raws: list[memoryview] = []
    rest: list[memoryview] = []
    for number, start, body, end in _fields(view):
        if len(raws) + len(rest) >= _MOST_FIELDS:
            raise InvalidInput(f"the message has more than {_MOST_FIELDS} fields; give several requests")
        if number == raw_field:
            raws.append(view[body:end])
        else:
            rest.append(view[start:end])
    try:
        head.ParseFromString(b"".join(rest))
    except DecodeError as error:
        raise InvalidInput(f"the message is not an Open Inference Protocol message: {error}") from None
    return head, raws


def _fields(view: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start of its tag, start of its body, end) of each top-level field. Raises `InvalidInput`.

    The encoding: https://protobuf.dev/programming-guides/encoding/
    """
    position, size = 0, len(view)
    while position < size:
        start = position
        tag, position = _varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 2:
            length, position = _varint(view, position)
            end = position + length
        elif wire_type == 0:
            _, end = _varint(view, position)
        elif wire_type in (1, 5):
            end = position + (8 if wire_type == 1 else 4)
        else:
            raise InvalidInput(f"the message is not protobuf: wire type {wire_type} at byte {start}")
        if end > size or number == 0:
            raise InvalidInput(f"the message is not protobuf or cut off: field {number} at byte {start} of {size}")
        yield number, start, position, end
        position = end


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(view) and shift < 70:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise InvalidInput(f"the message is not protobuf or cut off: bad number at byte {position}")


def _tensors(heads: Any, raws: list[memoryview], kind: str) -> Tensors:
    if raws and len(raws) != len(heads):
        raise InvalidInput(f"{len(heads)} {kind}s but {len(raws)} raw contents; give raw contents for all or for none")
    tensors: Tensors = {}
    for index, head in enumerate(heads):
        if head.name in tensors:
            raise InvalidInput(f"{kind} '{head.name}' is given twice")
        dtype = NUMPY_OF.get(head.datatype)
        if dtype is None:
            known = ", ".join(NUMPY_OF)
            raise InvalidInput(f"{kind} '{head.name}' has unknown datatype '{head.datatype}'; known: {known}")
        shape = tuple(head.shape)
        if any(n < 0 for n in shape):
            raise InvalidInput(f"{kind} '{head.name}' has a negative dimension in its shape {list(shape)}")
        count = 1
        for n in shape:  # Python's integers: numpy's product would overflow silently
            count *= n
        flat = _from_raw(head, dtype, raws[index], kind) if raws else _from_contents(head, dtype, kind)
        if len(flat) != count:
            raise InvalidInput(
                f"{kind} '{head.name}' has {len(flat)} elements where its shape {list(shape)} says {count}"
            )
        try:
            tensors[head.name] = flat.reshape(shape)
        except ValueError as error:  # more dimensions, or larger ones beside a 0, than numpy knows
            raise InvalidInput(f"{kind} '{head.name}' has a shape that cannot be: {error}") from None
    return tensors


def _from_raw(head: Any, dtype: np.dtype[Any], raw: memoryview, kind: str) -> Array:
    if head.HasField("contents"):
        raise InvalidInput(f"{kind} '{head.name}' has both raw and typed contents; give one")
    if dtype == np.object_:
        elements = _split_elements(raw, head.name, kind)
        # An image is used in place; a label outlives its message.
        return _byte_elements(elements if kind == "input" else [bytes(element) for element in elements])
    if len(raw) % dtype.itemsize:
        raise InvalidInput(
            f"{kind} '{head.name}' has {len(raw)} raw bytes, not a multiple of {head.datatype}'s {dtype.itemsize}"
        )
    return np.frombuffer(raw, dtype=dtype.newbyteorder("<"))


def _split_elements(raw: memoryview, name: str, kind: str) -> list[memoryview]:
    elements: list[memoryview] = []
    position = 0
    while position < len(raw):
        body = position + 4
        end = body + int.from_bytes(raw[position:body], "little")
        if end > len(raw):
            raise InvalidInput(
                f"{kind} '{name}' (BYTES) is cut off: element {len(elements)} needs {end} bytes of {len(raw)}; "
                "each element follows its 4-byte little-endian length"
            )
        if kind == "input" and len(elements) == _MOST_ELEMENTS:
            raise InvalidInput(f"{kind} '{name}' has more than {_MOST_ELEMENTS} elements; give several requests")
        elements.append(raw[body:end])
        position = end
    return elements


def _from_contents(head: Any, dtype: np.dtype[Any], kind: str) -> Array:
    field = _CONTENTS_FIELD.get(head.datatype)
    if field is None:
        raise InvalidInput(f"{kind} '{head.name}': {head.datatype} travels only in raw contents")
    values = getattr(head.contents, field)
    if dtype == np.object_:
        if kind == "input" and len(values) > _MOST_ELEMENTS:
            raise InvalidInput(f"{kind} '{head.name}' has more than {_MOST_ELEMENTS} elements; give several requests")
        return _byte_elements(values)
    try:
        return np.array(values, dtype=dtype)
    except OverflowError as error:
        raise InvalidInput(f"{kind} '{head.name}': {error}") from None


def _byte_elements(values: Sequence[Buffer]) -> Array:
    array = np.empty(len(values), dtype=np.object_)
    for index, value in enumerate(values):  # not array[:] = values: numpy would take the buffers apart
        array[index] = value
    return array


def _set_parameter(parameter: Any, value: Parameter) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def _parameters(fields: Any) -> dict[str, Parameter]:
    return {
        key: getattr(value, choice)
        for key, value in fields.items()
        if (choice := value.WhichOneof("parameter_choice")) is not None
    }


# --- ledgers ---------------------------------------------------------------------------------------------------------

# What a ledger is written in: a word's number is its place here, so words are only ever added, at the end: two versions
# of a suite may talk to each other. Any other word travels as itself.
VOCABULARY: tuple[str, ...] = (
    *("schedule_lag", "admission", "preprocess_queue", "send_queue", "broker_wait", "inference_queue", "batch_wait"),
    *("reply_queue", "dispatch", "decode", "resize", "normalize", "interpret", "serialize", "deserialize", "transit"),
    *("upload", "infer", "download", "remote", "redelivery", "retry", "unanswered"),
    *("client", "preprocess", "inference", "client>preprocess", "preprocess>inference"),
    *("system", "destination", "request_bytes", "reply_bytes", "partition", "offset", "attempt", "publish_ns"),
    *("age_ns", "batch_size", "batch_id", "memory", "grpc", "kafka", "redis"),
)
_ITSELF = 1 << 15  # numbers from here on are of words that the ledger brings
_UNKNOWN = "unknown"  # a word of a newer peer's vocabulary
_NUMBER_OF = {word: number for number, word in enumerate(VOCABULARY)}
_WORDS = dict(enumerate(VOCABULARY))
_STAGE_OF = {_NUMBER_OF[stage]: stage for stage in Stage}
_REMOTE = Stage.REMOTE
_FACT_OF = {_NUMBER_OF[fact]: fact for fact in Fact}

_MOST_TILES = 4096  # whoever keeps, shows or traces a ledger does something for each
_TILE = struct.Struct("<HHqq")
_FACT = struct.Struct("<HHq")
_row_as = tuple.__new__  # a row is a tuple already: made a Tile without unpacking it


def encode_ledger(tiles: Sequence[Tile]) -> bytes:
    """The tiles in rows, in order."""
    number, own, pack = _NUMBER_OF, _Own(), _TILE.pack
    try:
        rows = [pack(number[stage], number[place], duration, cpu) for stage, duration, cpu, place, _ in tiles]
    except KeyError:  # a place of somebody's own
        rows = [pack(number[stage], own.number(place), duration, cpu) for stage, duration, cpu, place, _ in tiles]
    facts = [
        _FACT.pack(index, number[name], own.number(str(value)) if name in TEXTS else value)
        for index, tile in enumerate(tiles)
        if tile[4]
        for name, value in tile[4]
    ]
    return ledger_pb2.Ledger(tiles=b"".join(rows), facts=b"".join(facts), words=own).SerializeToString()


class _Own(dict[str, int]):
    """Words that are not in the vocabulary, and their numbers."""

    def number(self, word: str) -> int:
        number = _NUMBER_OF.get(word)
        return self.setdefault(word, _ITSELF + len(self)) if number is None else number


def _word(number: int, own: Sequence[str]) -> str:
    """Raises `LookupError` for what no version could mean."""
    if number >= _ITSELF:
        return own[number - _ITSELF]
    if number < 0:
        raise LookupError(number)
    return _WORDS.get(number, _UNKNOWN)


def decode_ledger(data: bytes) -> tuple[Tile, ...]:
    """The tiles of `data`. A stage that is unknown here (a newer peer's) is `remote`, any other such word `unknown`.

    Raises `Internal`.
    """
    try:
        ledger = ledger_pb2.Ledger.FromString(data)
        rows, facts = ledger.tiles, ledger.facts
        if len(rows) > _MOST_TILES * _TILE.size or len(facts) > _MOST_TILES * _FACT.size:
            raise Internal(f"the peer's ledger has more than {_MOST_TILES} parts")
        own, unpacked, stage_of = ledger.words, _TILE.iter_unpack(rows), _STAGE_OF.get
        try:
            tiles = [
                _row_as(Tile, (stage_of(stage, _REMOTE), duration, cpu, _WORDS[place], ()))
                for stage, place, duration, cpu in unpacked
            ]
        except KeyError:  # a place of somebody's own
            tiles = [
                _row_as(Tile, (stage_of(stage, _REMOTE), duration, cpu, _word(place, own), ()))
                for stage, place, duration, cpu in _TILE.iter_unpack(rows)
            ]
        known: dict[int, list[tuple[Fact, int | str]]] = {}
        for index, name, number in _FACT.iter_unpack(facts):
            fact = _FACT_OF.get(name)
            if fact is not None:  # one that is unknown here is passed over
                value = _word(number, own) if fact in TEXTS else number
                if index in known:
                    known[index].append((fact, value))
                else:
                    known[index] = [(fact, value)]
        for index, stated in known.items():
            stage, duration, cpu, place, _ = tiles[index]
            tiles[index] = _row_as(Tile, (stage, duration, cpu, place, tuple(stated)))
        return tuple(tiles)
    except (DecodeError, LookupError, struct.error) as error:
        raise Internal(f"the peer's ledger is malformed: {error}") from error


def ledger_parameter(tiles: Sequence[Tile]) -> bytes:
    """The encoded field `parameters["ledger"]`, to be appended to an encoded ModelInferResponse."""
    field = open_inference_pb2.ModelInferResponse()
    field.parameters[LEDGER_PARAMETER].string_param = base64.b64encode(encode_ledger(tiles)).decode("ascii")
    return bytes(field.SerializeToString())
