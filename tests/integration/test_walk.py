"""The walk of a request through real processes and a real broker: its time adds up, and its answer is right.

What is asked of every transport alike: fused, gRPC, Kafka through librdkafka, Kafka through kafka-python, Redis.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image, ImageOps

from loadgen.analysis import quantile
from loadgen.calibration import calibrate
from loadgen.runner import Run
from loadgen.schedule import parse_schedule
from loadgen.target import Exchange, OipTarget, image_tensor
from services import tasks, wire
from services.accounting import Stage, Tile, Timeline, monotonic_ns
from services.inference import backends
from services.inference.backends.backend import Backend
from services.inference.engine import Engine
from services.link import Link
from services.local import deployments
from services.local.deployments import Options
from services.local.preflight import absent
from services.local.stack import Stack
from services.messages import Array, Tensors
from services.models.catalogue import DEFAULT, load_catalogue
from services.pipeline import Pipeline, preprocessing_stage
from services.preprocess import preprocessor
from services.preprocess.server import Door
from services.tasks.task import Setup
from services.transports.grpc import GrpcTransport
from services.transports.transport import Delivery
from tests.answers import check_answer
from tests.photographs import CLASSES, encode, jpeg, pixels

pytestmark = pytest.mark.kafka

MODEL = "efficientnet-lite0"
ABSENT = absent(list(deployments.TRANSPORTS))
TRANSPORTS = [name for name in deployments.TRANSPORTS if name not in ABSENT]
PARAMETERS = [
    pytest.param(n, marks=[pytest.mark.skip(reason=ABSENT[n])] if n in ABSENT else []) for n in deployments.TRANSPORTS
]
BROKERED = [name for name, row in deployments.TRANSPORTS.items() if row.broker]
# Two more processes of the same model for the transports whose engine batches; by another name, so that on the broker
# that is shared their topics are their own.
BATCHED, BATCHING = "lite0-batched", ("grpc", "kafka")
OUTPUTS = ("scores", "labels", "classes", "logits")
WAIT = 60.0

# A request's stages in order, by transport: (stage, where). A wait in a broker is there when there was one, so it is
# not listed.
CLIENT, DOOR, HOP = "client", "preprocess", "preprocess>inference"
PUBLIC = "client>preprocess"
_IN = [
    (Stage.SCHEDULE_LAG, CLIENT),
    (Stage.SERIALIZE, CLIENT),
    (Stage.ADMISSION, DOOR),
    (Stage.TRANSIT, PUBLIC),  # the bytes come in after the call
    (Stage.DESERIALIZE, DOOR),
    (Stage.PREPROCESS_QUEUE, DOOR),
    (Stage.DECODE, DOOR),
    (Stage.RESIZE, DOOR),
    (Stage.NORMALIZE, DOOR),
    (Stage.DISPATCH, DOOR),
]
_ENGINE = [
    (stage, "inference")
    for stage in (Stage.INFERENCE_QUEUE, Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD, Stage.REPLY_QUEUE)
]
_OUT = [
    (Stage.DISPATCH, DOOR),
    (Stage.INTERPRET, DOOR),
    (Stage.SERIALIZE, DOOR),
    (Stage.TRANSIT, PUBLIC),
    (Stage.DISPATCH, CLIENT),
    (Stage.DESERIALIZE, CLIENT),
]


def _hop(*arrival: tuple[Stage, str]) -> list[tuple[Stage, str]]:
    return [
        (Stage.SERIALIZE, DOOR),
        (Stage.ADMISSION, "inference"),
        *arrival,
        (Stage.DESERIALIZE, "inference"),
        *_ENGINE,
        (Stage.DISPATCH, "inference"),
        (Stage.SERIALIZE, "inference"),
        (Stage.TRANSIT, HOP),
        (Stage.DISPATCH, DOOR),
        (Stage.DESERIALIZE, DOOR),
    ]


WALK = {
    "fused": [*_IN, *_ENGINE, *_OUT],
    "grpc": [*_IN, *_hop((Stage.TRANSIT, HOP)), *_OUT],
    "kafka": [*_IN, *_hop(), *_OUT],
    "kafka-python": [*_IN, *_hop(), *_OUT],
    "redis": [*_IN, *_hop(), *_OUT],
}
WAITS = {Stage.BROKER_WAIT, Stage.REDELIVERY}


def medium(name: str) -> bytes:
    """The photograph as a JPEG of the plans' size "medium": 500 x 375 pixels, about 100 kB."""
    return encode(ImageOps.fit(Image.fromarray(pixels(name)), (500, 375)), quality=95)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All deployments: a door each, an engine for all but one, two brokers; each a process."""
    with Stack(TRANSPORTS, Options((MODEL,)), tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def batching(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """gRPC and Kafka again, with an engine that makes batches of up to 8."""
    folder = tmp_path_factory.mktemp("batching")
    models = folder / "models.toml"
    text = DEFAULT.read_text(encoding="utf-8").replace(f"[{MODEL}", f"[{BATCHED}")
    for relative in ("../../models/", "imagenet_labels.txt", "voc_labels.txt", "coco_labels.txt"):
        text = text.replace(f'"{relative}', f'"{(DEFAULT.parent / relative).resolve()}' + "/" * relative.endswith("/"))
    models.write_text(text, encoding="utf-8")
    options = Options((BATCHED,), str(models), ("--max-batch", "8", "--max-delay-ms", "20"))
    with Stack(BATCHING, options, folder, kafka=stack.brokers["kafka"].bootstrap) as batching:
        yield batching


@pytest.fixture(params=PARAMETERS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def target(stack: Stack, transport: str) -> Iterator[OipTarget]:
    target = OipTarget(stack.doors()[transport], "classification", WAIT)
    yield target
    target.close()


def run(target: OipTarget, schedule: str, requests: int) -> list[Exchange]:
    """All answered."""
    tensors = [image_tensor(medium(name)) for name in CLASSES]
    exchanges = Run(target, tensors, parse_schedule(schedule, requests, 1), prefix="", timeout_s=WAIT).run()
    assert [f"{e.error}: {e.message}" for e in exchanges if e.error is not None] == []
    return exchanges


# --- the ledger ------------------------------------------------------------------------------------------------------


def hop_residency(tiles: Sequence[Tile], index: int) -> int:
    """What the callee of the hop that closes at `index` has accounted for, in ns."""
    callee = tiles[index].where.partition(">")[2]
    places = [tile.where for tile in tiles]
    begin = places.index(callee)
    return sum(tile.duration_ns for tile in tiles[begin:index])


def assert_no_part_is_negative(tiles: Sequence[Tile]) -> None:
    """A remainder between two clocks may be, by what they can differ in rate."""
    for index, tile in enumerate(tiles):
        least = -500e-6 * hop_residency(tiles, index) if tile.stage is Stage.TRANSIT else 0
        assert tile.duration_ns >= least, (tile, tiles)


@pytest.mark.parametrize(("schedule", "requests"), [("closed(1)", 24), ("closed(16)", 96)])
def test_the_parts_are_the_total_of_every_request(
    target: OipTarget, transport: str, schedule: str, requests: int
) -> None:
    exchanges = run(target, schedule, requests)
    assert len(exchanges) == requests
    for exchange in exchanges:
        # Integers: the client's own clock on one side, six threads' and three processes' tiles on the other
        assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
        assert_no_part_is_negative(exchange.tiles)
        assert [(t.stage, t.where) for t in exchange.tiles if t.stage not in WAITS] == WALK[transport]
        waits = [tile for tile in exchange.tiles if tile.stage in WAITS]
        assert {tile.where for tile in waits} <= {HOP}
        assert not waits or transport in BROKERED
        computed = [tile for tile in exchange.tiles if tile.stage in (Stage.DECODE, Stage.INFER, Stage.NORMALIZE)]
        assert all(tile.cpu_ns > 0 for tile in computed)


def test_one_request_at_a_time_waits_for_nothing_that_is_not_named(
    target: OipTarget, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given the floor of every hop: the same bytes over the same link, idle
    tensors = [image_tensor(medium(name)) for name in CLASSES]
    run(target, "closed(1)", 8)
    floors = calibrate(target, tensors, 40, 0.02, WAIT)
    assert {floor.hop for floor in floors} == {PUBLIC} | ({HOP} if transport != "fused" else set())
    # When requests go one by one
    exchanges = run(target, "closed(1)", 40)
    # Then what is left of the movement beyond it is small. How small is a benchmark's to say, on a machine that does
    # nothing else; here it must not have become the place where time hides.
    floor = sum(floor.p50_ns for floor in floors)
    moved = sorted(sum(t.duration_ns for t in e.tiles if t.stage is Stage.TRANSIT) - floor for e in exchanges)
    share = quantile(moved, 0.5) / quantile(sorted(e.total_ns for e in exchanges), 0.5)
    with capsys.disabled():
        sys.stdout.write(f"\n{transport}: floor {floor / 1e6:.2f} ms, excess p50 {share:+.1%} of the total\n")
    assert abs(share) < 0.25


# --- the answers -----------------------------------------------------------------------------------------------------


def ask(transport: GrpcTransport, image: bytes) -> Future[Tensors]:
    """All outputs, `logits` included, which only come when they are asked for."""
    payload = wire.encode_request("classification", "", {"image": image_tensor(image)}, OUTPUTS)
    outputs: Future[Tensors] = Future()
    transport.request(payload, {}, WAIT).add_done_callback(
        lambda done: outputs.set_result(wire.decode_response(done.result().payload).outputs)
    )
    return outputs


def answers(door: str, names: Sequence[str]) -> list[Tensors]:
    """The answers about the photographs of these names, all asked at once."""
    transport = GrpcTransport(door)
    try:
        return [future.result(WAIT) for future in [ask(transport, jpeg(name)) for name in names]]
    finally:
        transport.close()


def test_every_photograph_gets_its_answer_also_under_concurrency(stack: Stack, transport: str) -> None:
    names = list(CLASSES) * 6
    for name, outputs in zip(names, answers(stack.doors()[transport], names), strict=True):
        check_answer(name, outputs)


def test_all_transports_answer_the_same_bits(stack: Stack) -> None:
    names = list(CLASSES)
    by_transport = {transport: answers(door, names) for transport, door in stack.doors().items()}
    for transport in TRANSPORTS:
        for name, ours, fused in zip(names, by_transport[transport], by_transport["fused"], strict=True):
            for output in OUTPUTS:
                assert ours[output].dtype == fused[output].dtype
                np.testing.assert_array_equal(ours[output], fused[output], f"{name} {output} over {transport}")


@pytest.mark.parametrize("transport", BATCHING)
def test_a_batch_changes_an_answer_by_rounding_only(stack: Stack, batching: Stack, transport: str) -> None:
    names = list(CLASSES) * 10
    alone = dict(zip(CLASSES, answers(stack.doors()["fused"], list(CLASSES)), strict=True))
    for name, outputs in zip(names, answers(batching.doors()[transport], names), strict=True):
        check_answer(name, outputs)
        reference = alone[name]["logits"]
        assert np.abs(outputs["logits"] - reference).max() <= 1e-4 * np.ptp(reference)
        np.testing.assert_array_equal(outputs["classes"], alone[name]["classes"])
    # And there were batches, as the engine's own count has it
    engine = next(r for r in batching.running if r.deployment == transport and r.name == "inference")
    with triton.InferenceServerClient(engine.host_port) as client:
        statistics = client.get_inference_statistics(BATCHED).model_stats[0]
    assert sum(batch.batch_size * batch.compute_infer.count for batch in statistics.batch_stats) == len(names)
    assert max(batch.batch_size for batch in statistics.batch_stats) > 1


def test_the_ledger_of_a_batch_adds_up_too(batching: Stack) -> None:
    target = OipTarget(batching.doors()["kafka"], "classification", WAIT)
    for exchange in run(target, "closed(16)", 48):
        assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
        assert_no_part_is_negative(exchange.tiles)
        assert [tile.stage for tile in exchange.tiles].count(Stage.BATCH_WAIT) == 1
    target.close()


# --- the checks above can fail ---------------------------------------------------------------------------------------


class Mutation(NamedTuple):
    """What becomes of a batch on its way into the model, and of its outputs on their way out."""

    into: Callable[[Array], Array] = lambda batch: batch
    out: Callable[[Array], Array] = lambda logits: logits


class Mutant:
    """The real backend, wrong."""

    emulated = False

    def __init__(self, backend: Backend, mutation: Mutation) -> None:
        self.platform = backend.platform
        self.sizes: list[int] = []
        self._backend = backend
        self._mutation = mutation

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        self.sizes.append(len(batch))
        outputs = self._backend.infer(self._mutation.into(batch), timeline)
        return {name: self._mutation.out(value) for name, value in outputs.items()}

    def close(self) -> None:
        self._backend.close()


def walk_with(mutation: Mutation, names: Sequence[str]) -> tuple[list[Tensors], list[int]]:
    """Answers about the photographs through a whole door in this process, asked at once, and the batches' sizes."""
    spec = load_catalogue()[MODEL]
    task = tasks.load(spec.task, Setup(spec.name, spec.recipe, spec.label_names()))
    mutants: list[Mutant] = []

    def load() -> Mutant:
        mutants.append(Mutant(backends.load(backends.default_for(spec), spec, "cpu", 1), mutation))
        return mutants[-1]

    engine = Engine(spec, load, max_batch=8, max_delay_s=0.3)
    stage = preprocessing_stage(
        preprocessor.load("opencv", 10**8, scaled=True), instances=2, max_batch=1, max_delay_s=0, capacity=64
    )
    door = Door(
        Pipeline({task.name: task}, {spec.name: Link(engine.submit, None, engine.close)}, stage),
        admission_limit=64,
        default_timeout_s=WAIT,
    )

    def one(name: str) -> Tensors:
        now = monotonic_ns()
        payload = wire.encode_request(task.name, name, {"image": image_tensor(jpeg(name))}, OUTPUTS)
        return wire.decode_response(door(Delivery(payload, {}, now, now, now)).result(WAIT).payload).outputs

    with ThreadPoolExecutor(len(names)) as pool:
        results = list(pool.map(one, names))
    stage.close()
    engine.close()
    return results, mutants[0].sizes


def wrong(names: Sequence[str], results: Sequence[Tensors]) -> list[str]:
    """Names of the photographs whose answer the check refuses."""
    refused = []
    for name, outputs in zip(names, results, strict=True):
        try:
            check_answer(name, outputs)
        except AssertionError:
            refused.append(name)
    return refused


def test_without_a_mutation_all_answers_pass() -> None:
    results, sizes = walk_with(Mutation(), list(CLASSES))
    assert max(sizes) > 1
    assert wrong(list(CLASSES), results) == []


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(Mutation(into=lambda batch: np.ascontiguousarray(batch[:, ::-1])), id="channels swapped"),
        pytest.param(Mutation(out=np.zeros_like), id="outputs zeroed"),
        pytest.param(Mutation(out=lambda logits: np.roll(logits, 1, axis=0)), id="the neighbour's answer"),
        pytest.param(Mutation(into=lambda batch: np.ascontiguousarray(batch[..., ::-1, :])), id="upside down"),
    ],
)
def test_a_mutation_is_caught(mutation: Mutation) -> None:
    names = list(CLASSES)
    results, sizes = walk_with(mutation, names)
    assert max(sizes) == len(names)  # a batch of one has no neighbour
    assert wrong(names, results) == names
