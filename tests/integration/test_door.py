"""The door over real gRPC, in this process: what comes in wrong gets a status with cause and remedy, and harms nobody.

The model is the emulated one: what it answers is beside the point here (tests/integration/test_model_answers.py).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.utils import InferenceServerException

from loadgen.target import OipTarget
from services import wire
from services.accounting import CPU_STAGES, GROUP_OF, Group, Stage
from services.pb import open_inference_pb2 as pb
from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.photographs import encode, jpeg, pixels
from tests.unit.test_image_header import png_claiming

WAIT = 20.0
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def start(*flags: str) -> Service:
    link = () if "--link" in flags else ("--link", "emulated=fused:")
    arguments = ["--listen", "127.0.0.1:0", *link, *flags]
    service = build_preprocess(parse(PreprocessSettings, "", arguments, {}))
    service.start()
    return service


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    service = start()
    yield service.host_port
    assert service.stop(5)


@pytest.fixture
def client(door: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(door) as client:
        yield client


def image_input(*images: bytes) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(images)], "BYTES")
    array = np.empty(len(images), dtype=object)
    array[:] = images
    tensor.set_data_from_numpy(array)
    return tensor


def infer(door: str, payload: bytes, timeout: float = WAIT) -> wire.InferResponse:
    with grpc.insecure_channel(door) as channel:
        return wire.decode_response(channel.unary_unary(METHOD, None, None)(payload, timeout=timeout))


def refused(door: str, payload: bytes) -> tuple[grpc.StatusCode, str]:
    """The status of a request that must fail, after which a right one must succeed."""
    with pytest.raises(grpc.RpcError) as raised:
        infer(door, payload)
    fine = infer(door, request(jpeg("coffee")))
    assert fine.outputs["scores"].shape == (1, 5)
    return raised.value.code(), raised.value.details()


def byte_tensor(*elements: bytes) -> wire.Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def request(*images: bytes, model: str = "classification") -> bytes:
    return wire.encode_request(model, "1", {"image": byte_tensor(*images)})


# --- clients of others -----------------------------------------------------------------------------------------------


def test_tritons_client_works_unchanged(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("classification")
    server = client.get_server_metadata()
    assert server.name == "beyond-inference"
    metadata = client.get_model_metadata("classification")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("image", "BYTES", [-1])]
    assert [t.name for t in metadata.outputs] == ["scores", "labels", "classes"]
    config = client.get_model_config("classification").config
    assert (config.name, config.max_batch_size) == ("classification", 0)
    before = client.get_inference_statistics("classification").model_stats[0].inference_count
    result = client.infer("classification", [image_input(jpeg("coffee"), jpeg("china"))], request_id="7")
    assert result.as_numpy("scores").shape == (2, 5)
    assert result.as_numpy("labels").dtype == np.object_
    assert result.get_response().id == "7"
    after = client.get_inference_statistics("classification").model_stats[0]
    assert after.inference_count == before + 1
    assert after.inference_stats.success.ns > 0


def test_tritons_asynchronous_client_works_unchanged(door: str) -> None:
    async def ask() -> np.ndarray:
        async with triton_aio.InferenceServerClient(door) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("classification")).name == "classification"
            return (await client.infer("classification", [image_input(jpeg("coffee"))])).as_numpy("scores")

    assert asyncio.run(ask()).shape == (1, 5)


def test_only_the_outputs_that_are_asked_for_come_back(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("logits")]
    result = client.infer("classification", [image_input(jpeg("coffee"))], outputs=asked)
    assert [output.name for output in result.get_response().outputs] == ["logits"]
    assert result.as_numpy("logits").shape == (1, 1000)
    with pytest.raises(InferenceServerException, match="has no output"):
        client.infer("classification", [image_input(jpeg("coffee"))], outputs=[triton.InferRequestedOutput("mask")])


def test_an_image_in_typed_contents_is_read_too(door: str) -> None:
    message = pb.ModelInferRequest(model_name="classification")
    message.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(jpeg("coffee"))
    assert infer(door, message.SerializeToString()).outputs["classes"].shape == (1, 5)


def test_health_and_reflection(door: str) -> None:
    with grpc.insecure_channel(door) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel)
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        ]
        listed, described = reflect.ServerReflectionInfo(iter(questions), timeout=WAIT)
    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_every_reply_brings_its_ledger(door: str) -> None:
    tiles = infer(door, request(jpeg("coffee"))).tiles
    stages = [tile.stage for tile in tiles]
    assert stages[0] is Stage.ADMISSION
    assert [s for s in stages if s in (Stage.DECODE, Stage.RESIZE, Stage.NORMALIZE, Stage.INFER, Stage.INTERPRET)] == [
        Stage.DECODE,
        Stage.RESIZE,
        Stage.NORMALIZE,
        Stage.INFER,
        Stage.INTERPRET,
    ]
    assert stages[-1] is Stage.SERIALIZE
    assert all(tile.duration_ns >= 0 for tile in tiles)
    computing = [tile for tile in tiles if tile.stage in CPU_STAGES and tile.where == "preprocess"]
    assert all(tile.cpu_ns >= 0 for tile in computing)


def test_the_statistics_are_those_of_the_ledgers() -> None:
    # Given a door that has answered three requests, refused one, and been probed
    service = start()
    try:
        door = service.host_port
        ledgers = [infer(door, request(jpeg("coffee"))).tiles for _ in range(3)]
        with pytest.raises(grpc.RpcError):
            infer(door, request(b"no image"))
        probe = wire.encode_request("classification", "p", {"image": byte_tensor(b"")}, parameters={"probe": True})
        infer(door, probe)
        # Then they count as what they were, the probe not at all
        with triton.InferenceServerClient(door) as client:
            (model,) = client.get_inference_statistics("classification").model_stats
    finally:
        service.stop(5)
    stats = model.inference_stats
    assert (model.inference_count, stats.success.count, stats.fail.count) == (3, 3, 1)
    assert stats.fail.ns > 0

    # And their times are the ledgers'
    def spent(group: Group) -> int:
        return sum(t.duration_ns for tiles in ledgers for t in tiles if GROUP_OF[t.stage] is group)

    assert stats.queue.ns == spent(Group.QUEUEING)
    assert stats.compute_infer.ns == spent(Group.INFERENCE)
    assert stats.queue.ns != stats.compute_infer.ns
    parts = stats.queue.ns + stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
    assert parts == stats.success.ns == sum(t.duration_ns for tiles in ledgers for t in tiles)


@pytest.mark.parametrize("probe", ["0", "yes", 0, 1])
def test_a_parameter_of_a_strangers_is_not_ours(door: str, probe: int | str) -> None:
    image = {"image": byte_tensor(jpeg("coffee"))}
    parameters = {"probe": probe, "ledger": "cnViYmlzaA=="}
    reply = infer(door, wire.encode_request("classification", "1", image, parameters=parameters))
    assert Stage.DECODE in {tile.stage for tile in reply.tiles}


# --- bad input -------------------------------------------------------------------------------------------------------

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (jpeg("coffee")[:20_000], "cut off"),
        (b"Dear server, here is my cat", "send JPEG, PNG or WebP"),
        (b"", "empty"),
        (encode(pixels("coffee"), "PNG")[:-30], "cut off"),
        (png_claiming(30_000, 30_000), "30000 x 30000"),
        (png_claiming(5_000, 5_000), "cannot be decoded"),
    ],
)
def test_a_wrong_image(door: str, data: bytes, says: str) -> None:
    code, details = refused(door, request(data))
    assert code is INVALID
    assert says in details


def test_one_wrong_image_of_several_fails_the_request_and_says_which_cause(door: str) -> None:
    code, details = refused(door, request(jpeg("coffee"), b"text", jpeg("china")))
    assert code is INVALID
    assert "no image" in details


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (wire.encode_request("classification", "1", {"picture": byte_tensor(b"x")}), "takes one input 'image'"),
        (wire.encode_request("classification", "1", {}), "takes one input 'image'"),
        (wire.encode_request("classification", "1", {"image": np.zeros(4, np.uint8)}), "datatype BYTES"),
        (wire.encode_request("classification", "1", {"image": byte_tensor(b"x").reshape(1, 1)}), "shape [n]"),
        (wire.encode_request("classification", "1", {"image": byte_tensor()}), "no image"),
        (b"\xff\xfe\xfd", "not protobuf"),
        (b"hello", "not"),
    ],
)
def test_a_wrong_request(door: str, payload: bytes, says: str) -> None:
    code, details = refused(door, payload)
    assert code is INVALID
    assert says in details


def test_an_unknown_model(door: str, client: triton.InferenceServerClient) -> None:
    code, details = refused(door, request(jpeg("coffee"), model="telepathy"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "classification" in details
    with pytest.raises(InferenceServerException, match="no model 'telepathy'"):
        client.get_model_metadata("telepathy")


def test_a_version_that_is_not_there(door: str) -> None:
    head = pb.ModelInferRequest(model_version="7").SerializeToString()
    code, details = refused(door, request(jpeg("coffee")) + head)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "no version '7'" in details
    head = pb.ModelInferRequest(model_version="1").SerializeToString()
    assert infer(door, request(jpeg("coffee")) + head).outputs["scores"].shape == (1, 5)


def test_a_refusal_quotes_no_novel(door: str) -> None:
    # Given a name that no gRPC status could hold, nor any log should
    code, details = refused(door, request(jpeg("coffee"), model="\u20ac" * 1_000_000))
    # Then the refusal still says its cause, and the remedy
    assert code is grpc.StatusCode.NOT_FOUND
    assert details.startswith("there is no task")
    assert details.endswith("classification")
    assert len(details) < 1_000


def test_a_trace_context_that_is_no_text_does_not_reach_the_link() -> None:
    # Given a door whose link leads nowhere: it says so, where it could try
    service = start("--link", "emulated=grpc://127.0.0.1:1")
    try:
        metadata = (("traceparent-bin", b"\xff\n"), ("tracestate-bin", b"\x00"))
        with grpc.insecure_channel(service.host_port) as channel, pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(METHOD, None, None)(request(jpeg("coffee")), timeout=WAIT, metadata=metadata)
        assert "127.0.0.1:1 answered UNAVAILABLE" in raised.value.details()
    finally:
        service.stop(5)


def test_oddities_that_are_valid_are_answered(door: str) -> None:
    from PIL import Image

    rgb = pixels("coffee")
    for data in (
        encode(Image.fromarray(rgb).convert("L")),
        encode(Image.fromarray(rgb).convert("CMYK")),
        encode(Image.fromarray(rgb).convert("RGBA"), "PNG"),
        encode(rgb, progressive=True),
        encode(np.zeros((1, 1, 3), np.uint8), "PNG"),
        encode(rgb, "WEBP"),
    ):
        assert infer(door, request(data)).outputs["scores"].shape == (1, 5)


def test_a_message_over_the_limit(door: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        infer(door, request(b"\xff" * (18 * 1024 * 1024)))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- limits ----------------------------------------------------------------------------------------------------------


def test_the_admission_limit_refuses_and_the_others_are_answered(tmp_path: object) -> None:
    # Given a door that admits two, and a model that takes a second
    models = f"{tmp_path}/models.toml"
    text = """
[slow]
task = "classification"
law = [1000, 0]
recipe = { size = 224, crop = 256, mean = [127, 127, 127], std = [128, 128, 128] }
outputs = { logits = { dtype = "float32", shape = [-1, 1000] } }
"""
    with open(models, "w") as file:  # noqa: PTH123
        file.write(text)
    service = build_preprocess(
        parse(
            PreprocessSettings,
            "",
            ["--listen", "127.0.0.1:0", "--link", "slow=fused:", "--models-file", models, "--admission-limit", "2"],
            {},
        )
    )
    service.start()
    codes: list[grpc.StatusCode | None] = []

    def ask(timeout: float) -> None:
        try:
            infer(service.host_port, request(jpeg("coffee")), timeout)
            codes.append(None)
        except grpc.RpcError as error:
            codes.append(error.code())

    # When six come at once
    threads = [threading.Thread(target=ask, args=(WAIT,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    # Then two are answered, the rest refused
    assert sorted(map(str, codes)) == ["None"] * 2 + [str(grpc.StatusCode.RESOURCE_EXHAUSTED)] * 4
    # And a caller whose time is too short gets its deadline, and the next one its answer
    codes.clear()
    ask(0.1)
    ask(WAIT)
    assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED, None]
    assert service.stop(5)


def test_a_second_server_on_the_port_is_an_error_that_says_so(door: str) -> None:
    from services.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="another process"):
        start("--listen", door)


def test_draining_finishes_what_is_in_hand() -> None:
    service = start()
    host_port = service.host_port
    answers: list[int] = []

    def ask() -> None:
        try:
            answers.append(len(infer(host_port, request(*[jpeg("coffee")] * 8)).outputs["scores"]))
        except grpc.RpcError as error:
            answers.append(0 if error.code() is grpc.StatusCode.UNAVAILABLE else -1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert service.stop(10)
    for thread in threads:
        thread.join(WAIT)
    # Then each was answered in full or told to go elsewhere
    assert set(answers) <= {0, 8}
    assert len(answers) == 4


@pytest.mark.parametrize("url", ["fused:", "grpc://127.0.0.1:9"])
def test_what_is_emulated_is_said_to_be_so_behind_every_link(url: str) -> None:
    settings = parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0", "--link", f"emulated={url}"], {})
    service = build_preprocess(settings)
    service.start()
    target = OipTarget(service.host_port, "classification", WAIT)
    try:
        assert target.emulated()
    finally:
        target.close()
        service.stop(1)
