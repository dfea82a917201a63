"""Faces through the whole suite: MTCNN with its real weights and an identifier, over every transport.

The identifier is a small one, by the mean colours of a face: what is tried is the walk, not how well people are told
apart.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from loadgen import frames, samples
from loadgen.target import Exchange, OipTarget, image_tensor
from services import enroll, transports
from services.accounting import Stage, monotonic_ns, total_ns
from services.errors import ConfigurationError, InvalidInput
from services.serving import Service
from services.settings import InferenceSettings, PreprocessSettings, parse
from services.tasks.gallery import Gallery, write_gallery
from services.wiring import build_inference, build_preprocess
from tests import faces
from tests.photographs import encode, jpeg, pixels

pytestmark = [
    pytest.mark.skipif(not faces.MTCNN.is_file(), reason="models/mtcnn.onnx is not built: make models"),
    pytest.mark.timeout(240),
    # kafka-python's, while it is imported
    pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning"),
]

WAIT = 60.0
OUTPUTS = ("boxes", "scores", "embeddings", "identities", "similarities")
BROKERED = ("kafka", "kafka+python")
# What the detector's link and the identifier's are; "mixed" is the design's own example.
ROWS = {
    "fused": ("fused", "fused"),
    "memory": ("memory", "memory"),
    "grpc": ("grpc", "grpc"),
    "kafka": ("kafka", "kafka"),
    "kafka+python": ("kafka+python", "kafka+python"),
    "mixed": ("fused", "kafka"),
}
TRANSPORTS = [
    pytest.param(name, id=name, marks=[pytest.mark.kafka] if set(row) & set(BROKERED) else [])
    for name, row in ROWS.items()
]


class Suite:
    """Both models' services, and a door for each row that a test asks for."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request = request
        self.models = faces.models_file(folder)
        self._services: list[Service] = []
        self._doors: dict[str, Service] = {}
        self._engines: dict[tuple[str, str], str] = {}
        self._name = folder.name

    def door(self, row: str) -> str:
        """host:port."""
        if row not in self._doors:
            links = [
                flag
                for model, scheme in zip(("mtcnn", "looks"), ROWS[row], strict=True)
                for flag in ("--link", f"{model}={self._url(model, scheme)}")
            ]
            self._doors[row] = self.start(*links)
        return self._doors[row].host_port

    def start(self, *flags: str) -> Service:
        arguments = ["--listen", "127.0.0.1:0", "--models-file", str(self.models), "--max-batch", "8", *flags]
        service = build_preprocess(parse(PreprocessSettings, "", arguments, {}))
        service.start()
        self._services.append(service)
        return service

    def _url(self, model: str, scheme: str) -> str:
        if scheme == "fused":
            return "fused:"
        key = (model, scheme)
        if key not in self._engines:
            bootstrap = self._request.getfixturevalue("broker").bootstrap if scheme in BROKERED else ""
            topic = f"{self._name}-{model}"
            url = f"memory://{topic}" if scheme == "memory" else f"{scheme}://{bootstrap}/{topic}-{scheme[-6:]}"
            consume = [] if scheme == "grpc" else ["--consume", url]
            arguments = ["--listen", "127.0.0.1:0", "--models-file", str(self.models), "--model", model]
            arguments += ["--max-batch", "8", "--max-delay-ms", "1", *consume]
            service = build_inference(parse(InferenceSettings, "", arguments, {}))
            service.start()
            self._services.insert(0, service)  # doors stop first
            self._engines[key] = f"grpc://{service.host_port}" if scheme == "grpc" else url
        return self._engines[key]

    def close(self) -> None:
        for service in reversed(self._services):
            service.stop(5)


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    suite = Suite(request, tmp_path_factory.mktemp("faces"))
    yield suite
    suite.close()


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """One of each that the load generator makes, and a few more."""
    folder = tmp_path_factory.mktemp("samples")
    made = {size: samples.make(size, 1, folder=folder)[0].data for size in frames.FACES}
    return {**made, "faces-0": jpeg("coffee"), "faces-100": encode(faces.crowd(10, 10))}


class Answer(NamedTuple):
    exchange: Exchange
    boxes: NDArray[Any]
    embeddings: NDArray[Any]
    identities: list[str]
    similarities: NDArray[Any]


def ask(target: OipTarget, data: bytes, id_: str = "1") -> Answer:
    exchange = target.send(image_tensor(data), id_, monotonic_ns()).result(WAIT)
    assert exchange.error is None, exchange.message
    outputs = exchange.outputs
    assert list(outputs) == list(OUTPUTS)
    names = [bytes(name).decode() for name in outputs["identities"][0]]
    return Answer(exchange, outputs["boxes"][0], outputs["embeddings"][0], names, outputs["similarities"][0])


def target(host_port: str) -> OipTarget:
    return OipTarget(host_port, "faces", WAIT)


# --- right answers ---------------------------------------------------------------------------------------------------


def test_the_astronauts_face_is_found_where_it_is_however_she_is_shown(suite: Suite) -> None:
    door = target(suite.door("fused"))
    (box,) = ask(door, jpeg("astronaut")).boxes
    assert faces.overlap(box, faces.ASTRONAUT) > 0.7
    # Twice as large: in pixels of the larger one
    large = Image.fromarray(pixels("astronaut")).resize((1024, 1024), Image.Resampling.LANCZOS)
    (twice,) = ask(door, encode(large)).boxes
    assert faces.overlap(twice / 2, box) > 0.85
    # Stored on its side, with the tag that says so
    turned = Image.fromarray(pixels("astronaut")).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    (upright,) = ask(door, encode(turned, exif=exif)).boxes
    assert faces.overlap(upright, box) > 0.95
    # At the end of a wide frame
    wide = np.zeros((512, 1500, 3), np.uint8)
    wide[:, -512:] = pixels("astronaut")
    (far,) = ask(door, encode(wide)).boxes
    assert faces.overlap(far - [1500 - 512, 0, 1500 - 512, 0], box) > 0.8
    door.close()


@pytest.mark.parametrize("name", ["coffee", "chelsea", "china", "flower"])
def test_where_there_is_no_face_none_is_found(suite: Suite, name: str) -> None:
    door = target(suite.door("fused"))
    answer = ask(door, jpeg(name))
    door.close()
    assert answer.boxes.shape == (0, 4)
    assert answer.embeddings.shape == (0, 147)
    assert answer.identities == []
    # Nobody was asked
    assert [tile.stage for tile in answer.exchange.tiles].count(Stage.INFER) == 1
    assert total_ns(answer.exchange.tiles) == answer.exchange.done_ns - answer.exchange.due_ns


@pytest.mark.parametrize("size", [*frames.FACES, "faces-100"])
def test_a_frame_has_as_many_faces_as_it_says_each_with_its_own_answer(
    suite: Suite, frame: Mapping[str, bytes], size: str
) -> None:
    door = target(suite.door("fused"))
    answer = ask(door, frame[size])
    door.close()
    n = int(size.removeprefix("faces-"))
    assert len(answer.boxes) == len(answer.embeddings) == len(answer.identities) == len(answer.similarities) == n
    np.testing.assert_allclose(np.linalg.norm(answer.embeddings, axis=1), 1, rtol=1e-5)
    # Each is about its own box
    likeness = looks(frame[size], answer) @ answer.embeddings.T
    assert likeness.diagonal().min() > 0.995
    if n <= 9:  # more are too much alike
        assert likeness.argmax(axis=1).tolist() == list(range(n)), "the answer of another face"


def test_made_frames_have_the_faces_that_they_promise_whatever_the_seed(
    suite: Suite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, door = tmp_path_factory.mktemp("more"), target(suite.door("fused"))
    for size, n in frames.FACES.items():
        for seed in (2, 3):
            [sample] = samples.make(size, 1, seed, folder)
            assert len(ask(door, sample.data).boxes) == n
    door.close()


def looks(data: bytes, answer: Answer) -> NDArray[np.float64]:
    """The identifier written out, [n, 147]: the square about a box with a tenth on each side, to 7 x 7 mean colours."""
    image = np.asarray(Image.open(io.BytesIO(data)))
    rows = []
    for box in answer.boxes:
        middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * 0.6
        low = np.maximum(np.round(middle - half), 0).astype(int)
        high = np.minimum(np.round(middle + half), image.shape[1::-1]).astype(int)
        part = Image.fromarray(image[low[1] : high[1], low[0] : high[0]])
        small = (np.asarray(part.resize((7, 7), Image.Resampling.BOX), np.float64) - 127.5) / 127.5
        flat = small.transpose(2, 0, 1).ravel()
        rows.append(flat / np.linalg.norm(flat))
    return np.array(rows)


def test_exchanged_answers_would_show(suite: Suite, frame: Mapping[str, bytes]) -> None:
    door = target(suite.door("fused"))
    answer = ask(door, frame["faces-4"])
    door.close()
    likeness = looks(frame["faces-4"], answer) @ np.roll(answer.embeddings, 1, axis=0).T
    assert likeness.argmax(axis=1).tolist() == [1, 2, 3, 0]


# --- every transport -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TRANSPORTS)
def test_every_transport_answers_alike_and_its_ledger_adds_up(
    suite: Suite, frame: Mapping[str, bytes], row: str
) -> None:
    # Given the same frames over no hop at all
    fused, door = target(suite.door("fused")), target(suite.door(row))
    for size in ("faces-0", "faces-1", "faces-9", "faces-32"):
        expected, answer = ask(fused, frame[size]), ask(door, frame[size])
        # Then the answers are the same, but for the order of additions in another batch
        np.testing.assert_allclose(answer.boxes, expected.boxes, atol=0.01)
        np.testing.assert_allclose(answer.embeddings, expected.embeddings, atol=1e-4)
        # and the client's time is the sum of its parts, as integers
        tiles = answer.exchange.tiles
        assert total_ns(tiles) == answer.exchange.done_ns - answer.exchange.due_ns
        rounds = 1 if size == "faces-0" else 2
        stages = [tile.stage for tile in tiles]
        assert stages.count(Stage.INFER) == rounds
        hops = sum(
            tile.stage is Stage.TRANSIT and tile.where == "preprocess>inference" and bool(tile.facts) for tile in tiles
        )
        assert hops == sum(scheme != "fused" for scheme in ROWS[row][:rounds])
        assert len(tiles) < 70  # however many faces there are
    for end in (fused, door):
        end.close()


@pytest.mark.parametrize("row", TRANSPORTS)
def test_many_frames_at_once_get_their_own_answers(suite: Suite, frame: Mapping[str, bytes], row: str) -> None:
    door = target(suite.door(row))
    sizes = ["faces-0", "faces-1", "faces-2", "faces-8", "faces-16"]
    alone = {size: ask(door, frame[size]) for size in sizes}
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: ask(door, frame[sizes[i % 5]], str(i)), range(20)))
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer.boxes, alone[sizes[i % 5]].boxes, atol=0.01)
        np.testing.assert_allclose(answer.embeddings, alone[sizes[i % 5]].embeddings, atol=1e-4)
        assert total_ns(answer.exchange.tiles) == answer.exchange.done_ns - answer.exchange.due_ns
    door.close()


# --- who -------------------------------------------------------------------------------------------------------------


def test_who_is_enrolled_is_known_and_others_are_not(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given the astronaut, enrolled by the command line from her photograph
    gallery, photograph = tmp_path / "people.npz", tmp_path / "astronaut.jpg"
    photograph.write_bytes(jpeg("astronaut"))
    url = f"grpc://{suite.door('fused')}"
    assert enroll.main(["--url", url, "--gallery", str(gallery), f"Eileen Collins={photograph}"]) == 0
    assert "1 faces of 1 people" in capsys.readouterr().out
    # When a door with that gallery sees her, and her in other colours
    door = target(suite.start("--link", "mtcnn=fused:", "--link", "looks=fused:", "--gallery", str(gallery)).host_port)
    both = np.concatenate([faces.head(), 255 - faces.head()[:, ::-1] // 2, faces.head()[:, :, ::-1]], axis=1)
    answer = ask(door, encode(both))
    door.close()
    # Then it knows her, and not who looks otherwise
    known = {round(box[0] / 160): name for box, name in zip(answer.boxes, answer.identities, strict=True)}
    assert known[0] == "Eileen Collins"
    assert len(known) > 1
    assert set(list(known.values())[1:]) | {known[max(known)]} != {"Eileen Collins"}
    assert known[max(known)] == ""


def test_nobody_is_in_an_empty_gallery(suite: Suite, tmp_path: Path) -> None:
    write_gallery(tmp_path / "empty.npz", Gallery("looks"))
    flags = ("--link", "mtcnn=fused:", "--link", "looks=fused:", "--gallery", str(tmp_path / "empty.npz"))
    door = target(suite.start(*flags).host_port)
    answer = ask(door, jpeg("astronaut"))
    door.close()
    assert (answer.identities, answer.similarities.tolist()) == ([""], [-1.0])


def test_a_photograph_of_nobody_or_of_several_cannot_be_enrolled(suite: Suite, tmp_path: Path) -> None:
    door = transports.connect(f"grpc://{suite.door('fused')}")
    for image, says in ((pixels("coffee"), "shows 0 faces"), (faces.crowd(2, 1), "shows 2 faces.*cut out")):
        (tmp_path / "it.png").write_bytes(encode(image, "PNG"))
        with pytest.raises(InvalidInput, match=says):
            enroll.enroll(door, tmp_path / "g.npz", [("It", tmp_path / "it.png")])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        enroll.enroll(door, tmp_path / "g.npz", [("It", tmp_path / "none.png")])
    assert not (tmp_path / "g.npz").exists()
    write_gallery(tmp_path / "g.npz", Gallery("another").enrolled("Ada", np.ones(3)))
    (tmp_path / "it.png").write_bytes(encode(pixels("astronaut"), "PNG"))
    with pytest.raises(ConfigurationError, match="embeddings of model 'another', the door's are of 'looks'"):
        enroll.enroll(door, tmp_path / "g.npz", [("It", tmp_path / "it.png")])
    door.close()


def test_the_command_line_says_what_went_wrong(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cup.jpg").write_bytes(jpeg("coffee"))
    url, gallery = f"grpc://{suite.door('fused')}", str(tmp_path / "g.npz")
    assert enroll.main(["--url", url, "--gallery", gallery, f"Cup={tmp_path / 'cup.jpg'}"]) == 2
    assert "cup.jpg: it shows 0 faces" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        enroll.main(["--url", url, "--gallery", gallery, "cup.jpg"])
    assert "'cup.jpg' is not NAME=PHOTOGRAPH" in capsys.readouterr().err


# --- settings --------------------------------------------------------------------------------------------------------


def test_faces_without_an_identifier_are_refused_at_start(suite: Suite) -> None:
    with pytest.raises(ConfigurationError, match=r"task 'faces' asks task 'identification'.*--link looks=URL"):
        suite.start("--link", "mtcnn=fused:")


def test_a_gallery_without_an_identifier_is_refused_at_start(suite: Suite) -> None:
    settings = parse(PreprocessSettings, "", ["--gallery", "g.npz", "--link", "emulated=fused:"], {})
    with pytest.raises(ConfigurationError, match=r"--gallery g.npz is for task 'identification'"):
        build_preprocess(settings)
