"""Tensors and ledgers survive the wire, and the wire is the protocol's: protobuf and tritonclient read it."""

from __future__ import annotations

import contextlib
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from services import wire
from services.accounting import TEXTS, Fact, Stage, Tile
from services.errors import Internal, InvalidInput
from services.pb import ledger_pb2
from services.pb import open_inference_pb2 as pb

numeric = st.sampled_from([name for name in wire.NUMPY_OF if name != "BYTES"])
arrays = numeric.flatmap(
    lambda name: hnp.arrays(wire.NUMPY_OF[name], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
# One that is not known here would be passed over.
facts = st.lists(
    st.sampled_from(list(Fact)).flatmap(
        lambda fact: st.tuples(st.just(fact), st.text(max_size=20) if fact in TEXTS else st.integers(-(2**62), 2**62))
    ),
    max_size=4,
).map(tuple)
tiles = st.lists(
    st.builds(
        Tile,
        st.sampled_from(list(Stage)),
        st.integers(-(2**40), 2**60),
        st.integers(-1, 2**60),
        st.sampled_from(["client", "preprocess", "preprocess>inference"]),
        facts,
    ),
    max_size=30,
)


def byte_tensor(*elements: bytes) -> wire.Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


@given(st.dictionaries(st.text(max_size=8), arrays, max_size=4), st.text(max_size=10))
def test_tensors_survive(tensors: dict[str, wire.Array], id_: str) -> None:
    parameters: dict[str, wire.Parameter] = {"i": 1, "b": True, "s": "x", "f": 0.5}
    request = wire.decode_request(wire.encode_request("m", id_, tensors, ["a"], parameters))
    assert (request.model, request.id, request.outputs) == ("m", id_, ("a",))
    assert request.parameters == parameters
    response = wire.decode_response(wire.encode_response("m", id_, tensors))
    for decoded in (request.inputs, response.outputs):
        assert list(decoded) == list(tensors)
        for name, array in tensors.items():
            assert decoded[name].dtype == array.dtype
            np.testing.assert_array_equal(decoded[name], array)


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_byte_elements_survive(elements: list[bytes]) -> None:
    tensor = byte_tensor(*elements)
    assert [bytes(e) for e in wire.decode_request(wire.encode_request("m", "", {"t": tensor})).inputs["t"]] == elements
    assert list(wire.decode_response(wire.encode_response("m", "", {"t": tensor})).outputs["t"]) == elements


def test_images_are_views_of_the_message_not_copies() -> None:
    payload = wire.encode_request("m", "", {"image": byte_tensor(b"x" * 1000)})
    element = wire.decode_request(payload).inputs["image"][0]
    assert isinstance(element, memoryview)
    assert element.obj is payload


def test_protobuf_reads_what_was_joined() -> None:
    # Given a request whose tensor never passed through protobuf
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = pb.ModelInferRequest.FromString(wire.encode_request("m", "7", {"x": array, "y": byte_tensor(b"ab", b"")}))
    # Then the standard's parser finds it where the standard says
    assert (message.model_name, message.id) == ("m", "7")
    assert [(t.name, t.datatype, list(t.shape)) for t in message.inputs] == [("x", "FP32", [2, 3]), ("y", "BYTES", [2])]
    assert message.raw_input_contents[0] == array.tobytes()
    assert message.raw_input_contents[1] == b"\x02\0\0\0ab\0\0\0\0"


def test_typed_contents_are_read_too() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="a", datatype="INT8", shape=[2]).contents.int_contents.extend([-3, 4])
    message.inputs.add(name="b", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"img")
    request = wire.decode_request(message.SerializeToString())
    assert request.inputs["a"].tolist() == [-3, 4]
    assert request.inputs["b"].tolist() == [b"img"]


def request_with(**tensor: object) -> bytes:
    fields = {"name": "image", "datatype": "FP32", "shape": [1], "raw": b"\0\0\0\0", "contents": None, **tensor}
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name=fields["name"], datatype=fields["datatype"], shape=fields["shape"])
    if fields["raw"] is not None:
        message.raw_input_contents.append(fields["raw"])
    if fields["contents"]:
        message.inputs[0].contents.fp32_contents.extend(fields["contents"])
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (request_with(datatype="FP33"), "unknown datatype 'FP33'"),
        (request_with(shape=[-1]), "negative dimension"),
        (request_with(shape=[2]), "1 elements where its shape [2] says 2"),
        (request_with(shape=[2**62, 2**62]), "elements where its shape"),
        (request_with(raw=b"\0\0\0"), "not a multiple of FP32's 4"),
        (request_with(contents=[1.0]), "both raw and typed contents"),
        (request_with(raw=None, datatype="FP16"), "only in raw contents"),
        (request_with(datatype="BYTES", raw=b"\xff\0\0\0abc"), "is cut off: element 0"),
        (request_with(datatype="BYTES", raw=b"\xff"), "is cut off"),
        (request_with(shape=[1] * 70), "a shape that cannot be"),
        (request_with(shape=[0, 2**62], raw=b""), "a shape that cannot be"),
        (request_with(datatype="BYTES", shape=[20_000], raw=b"\0\0\0\0" * 20_000), "more than 10000 elements"),
        (b"\x3a\0" * 20_000, "more than 10000 fields"),
        (b"\x70\x01" * 20_000, "more than 10000 fields"),
        (b"\x0a\xff", "cut off"),
        (b"\xff" * 20, "not protobuf"),
        (b"hello, I am text", "not protobuf"),
        (b"\x08\x01" + b"\x0b", "wire type 3"),
    ],
)
def test_wrong_messages_say_what_is_wrong(payload: bytes, says: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        wire.decode_request(payload)
    assert says in raised.value.message


def test_typed_contents_of_very_many_elements_are_refused() -> None:
    message = pb.ModelInferRequest()
    message.inputs.add(name="a", datatype="BYTES", shape=[20_000]).contents.bytes_contents.extend([b""] * 20_000)
    with pytest.raises(InvalidInput, match="more than 10000 elements"):
        wire.decode_request(message.SerializeToString())


def test_raw_contents_for_some_inputs_only_are_refused() -> None:
    message = pb.ModelInferRequest(raw_input_contents=[b"\0"])
    for name in ("a", "b"):
        message.inputs.add(name=name, datatype="UINT8", shape=[1])
    with pytest.raises(InvalidInput, match="2 inputs but 1 raw contents"):
        wire.decode_request(message.SerializeToString())


def test_a_name_given_twice_is_refused() -> None:
    message = pb.ModelInferRequest(raw_input_contents=[b"\0", b"\0"])
    for _ in range(2):
        message.inputs.add(name="a", datatype="UINT8", shape=[1])
    with pytest.raises(InvalidInput, match="given twice"):
        wire.decode_request(message.SerializeToString())


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read_never_worse(noise: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        wire.decode_request(noise)
    with contextlib.suppress(Internal):
        wire.decode_response(noise)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_a_cut_off_message_is_refused(data: bytes, cut: int) -> None:
    payload = wire.encode_request("model", "id", {"image": byte_tensor(data)})
    cut = min(cut, len(payload) - 1)
    if cut:
        try:
            request = wire.decode_request(payload[:cut])
        except InvalidInput:
            return
        # Cut between two fields it is a valid message of its own, but never one with the image
        assert "image" not in request.inputs


@given(tiles)
def test_ledgers_survive(ledger: list[Tile]) -> None:
    assert wire.decode_ledger(wire.encode_ledger(ledger)) == tuple(ledger)
    payload = wire.encode_response("m", "1", {"x": np.zeros(3, np.float32)}) + wire.ledger_parameter(ledger)
    response = wire.decode_response(payload)
    assert response.tiles == tuple(ledger)
    assert response.outputs["x"].tolist() == [0, 0, 0]


def test_words_of_ones_own_are_as_many_as_there_are() -> None:
    ledger = tuple(
        Tile(Stage.TRANSIT, n, -1, f"place {n}", ((Fact.DESTINATION, f"door {n}"),) if n % 7 == 0 else ())
        for n in range(4096)
    )
    assert wire.decode_ledger(wire.encode_ledger(ledger)) == ledger


def rows(*tiles: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("<HHqq", *tile) for tile in tiles)


def number(word: str) -> int:
    return wire.VOCABULARY.index(word)


def fact(tile: int, name: str, value: int) -> bytes:
    return struct.pack("<HHq", tile, number(name), value)


INFER, CLIENT = number("infer"), number("client")


def test_an_unknown_stage_is_time_that_is_kept_and_an_unknown_fact_is_passed_over() -> None:
    # Given a ledger of a newer peer: the stage, the place and one fact are in no vocabulary of ours
    facts = struct.pack("<HHq", 0, 900, 77) + struct.pack("<HHq", 0, number("batch_size"), 7)
    data = ledger_pb2.Ledger(tiles=rows((901, 32769, 5, -1)), facts=facts, words=["-", "x"]).SerializeToString()
    assert wire.decode_ledger(data) == (Tile(Stage.REMOTE, 5, -1, "x", ((Fact.BATCH_SIZE, 7),)),)


def test_a_place_or_a_text_of_a_newer_vocabulary_costs_no_answer() -> None:
    newer = len(wire.VOCABULARY)
    facts = fact(0, "system", newer) + fact(0, "offset", 3)
    data = ledger_pb2.Ledger(tiles=rows((INFER, newer, 5, 4)), facts=facts).SerializeToString()
    stated = ((Fact.SYSTEM, "unknown"), (Fact.OFFSET, 3))
    assert wire.decode_ledger(data) == (Tile(Stage.INFER, 5, 4, "unknown", stated),)


def test_every_stage_and_fact_is_in_the_vocabulary_once() -> None:
    assert {*Stage, *Fact} <= set(wire.VOCABULARY)
    assert len(set(wire.VOCABULARY)) == len(wire.VOCABULARY) < 1 << 15


def test_the_vocabulary_is_only_added_to() -> None:
    """A number means what it meant to versions before; when words are added, add a length and its hash, change none."""
    for length, expected in ((43, "9d1828f662ef0032"),):
        known = "\n".join(wire.VOCABULARY[:length])
        assert hashlib.sha256(known.encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        ledger_pb2.Ledger(tiles=rows((INFER, 32768, 1, 1))).SerializeToString(),
        ledger_pb2.Ledger(tiles=rows((INFER, CLIENT, 1, 1))[:-1]).SerializeToString(),
        ledger_pb2.Ledger(tiles=rows((INFER, CLIENT, 1, 1)), facts=b"odd").SerializeToString(),
        ledger_pb2.Ledger(tiles=rows((INFER, CLIENT, 1, 1)), facts=fact(1, "offset", 1)).SerializeToString(),
        ledger_pb2.Ledger(tiles=rows((INFER, CLIENT, 1, 1)) * 5000).SerializeToString(),
        ledger_pb2.Ledger(tiles=rows((INFER, CLIENT, 1, 1)), facts=fact(0, "offset", 1) * 5000).SerializeToString(),
        *(
            ledger_pb2.Ledger(tiles=rows((INFER, CLIENT, 1, 1)), facts=fact(0, "destination", text)).SerializeToString()
            for text in (2**40, 2**15, -1, -(2**40))
        ),
    ],
)
def test_a_malformed_ledger_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(Internal):
        wire.decode_ledger(data)
