"""The face detector's ONNX file is the network of its authors: against torch, on real photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from loadgen import samples
from services import tasks
from services.accounting import Timeline
from services.errors import ConfigurationError
from services.messages import Image
from services.models import mtcnn
from services.models.catalogue import load_catalogue
from services.preprocess import preprocessor
from services.tasks.faces import OVERLAP
from services.tasks.suppression import suppress
from services.tasks.task import Setup
from tests import faces
from tests.photographs import encode, pixels

WHEEL = faces.MTCNN.parents[1] / ".cache" / "models" / "facenet_pytorch-2.6.0-py3-none-any.whl"
pytestmark = pytest.mark.skipif(not WHEEL.is_file(), reason=f"{WHEEL} is not here: make models")

Array = NDArray[Any]
# What rounding makes of a face: ONNX Runtime and torch shrink the image with other roundings, which each network takes
# up. Measured: 0.08 and 3e-5.
BOX = 0.3  # pixels of the input
SCORE = 1e-3


def hopper() -> Array:
    """uint8 [600, 512, 3]; matplotlib comes with the environment that has torch."""
    import io

    import matplotlib.cbook
    from PIL import Image as Pillow

    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(Pillow.open(io.BytesIO(file.read())).convert("RGB"))


def tensor(image: Array) -> Array:
    recipe = load_catalogue()["mtcnn"].recipe
    decoded = Image(image, image.shape[1], image.shape[0])
    return preprocessor.load("opencv", 10**8, scaled=False).prepare(decoded, recipe, Timeline("test"))


def run(model: bytes, images: Array) -> list[tuple[Array, Array]]:
    """(boxes in pixels, scores) of each image's slots that hold a face."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], {"images": images})
    return [(b[s > 0] * mtcnn.SIZE, s[s > 0]) for b, s in zip(boxes, scores, strict=True)]


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Array]]:
    return mtcnn.read_weights(WHEEL)


@pytest.fixture(scope="module")
def model(weights: Mapping[str, Mapping[str, Array]]) -> bytes:
    data: bytes = mtcnn.build(weights).SerializeToString()
    return data


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Array:
    """The astronaut, a cat, a made frame with nine faces, Grace Hopper, and noise: one batch."""
    import io

    from PIL import Image as Pillow

    (frame,) = samples.make("faces-9", 1, folder=tmp_path_factory.mktemp("samples"))
    images = [pixels("astronaut"), pixels("chelsea"), np.asarray(Pillow.open(io.BytesIO(frame.data))), hopper()]
    images.append(np.random.default_rng(1).integers(0, 256, (300, 400, 3)).astype(np.uint8))
    return np.concatenate([tensor(image) for image in images])


def compare(found: list[tuple[Array, Array]], expected: list[tuple[Array, Array]]) -> None:
    """Raise `AssertionError` unless both have the same faces.

    Faces, not candidates: which of two boxes about one face is left for the task to drop, rounding may decide.
    """
    for ours, theirs in zip(found, expected, strict=True):
        (boxes, scores), (their_boxes, their_scores) = (
            (all_boxes[kept], all_scores[kept])
            for all_boxes, all_scores in (ours, theirs)
            for kept in [suppress(all_boxes, all_scores, OVERLAP, mtcnn.MOST, of_smaller=True)]
        )
        assert len(boxes) == len(their_boxes), f"{len(boxes)} faces in place of {len(their_boxes)}"
        free = list(range(len(boxes)))
        for box, score in zip(their_boxes, their_scores, strict=True):  # those that are equally likely have no order
            nearest = min(free, key=lambda i: float(np.abs(boxes[i] - box).max()))
            free.remove(nearest)
            np.testing.assert_allclose(boxes[nearest], box, atol=BOX)
            assert abs(scores[nearest] - score) <= SCORE


@pytest.mark.torch
def test_the_file_finds_what_torch_finds(model: bytes, photographs: Array) -> None:
    import torch

    from tests.mtcnn_torch import Cascade

    expected = Cascade(WHEEL)(torch.from_numpy(photographs))
    assert [len(scores) > 0 for _, scores in expected] == [True, False, True, True, False]
    assert len(expected[2][1]) >= 9
    # All at once, and one by one: nobody gets another one's faces
    compare(run(model, photographs), expected)
    for i in range(len(photographs)):
        compare(run(model, photographs[i : i + 1]), expected[i : i + 1])


@pytest.mark.torch
@pytest.mark.parametrize("mutation", ["channels", "weight", "slope", "zeros"])
def test_a_wrong_file_is_caught(weights: dict[str, dict[str, Array]], photographs: Array, mutation: str) -> None:
    import torch

    from tests.mtcnn_torch import Cascade

    batch = photographs[[0, 3]]
    expected = Cascade(WHEEL)(torch.from_numpy(batch))
    changed = {name: dict(parts) for name, parts in weights.items()}
    if mutation == "channels":
        batch = np.ascontiguousarray(batch[:, ::-1])
    if mutation == "weight":  # two of O-Net's 1152 inputs exchanged: what another order of unrolling does to all
        dense = changed["onet"]["dense5.weight"].copy()
        dense[:, [0, 500]] = dense[:, [500, 0]]
        changed["onet"]["dense5.weight"] = dense
    if mutation == "slope":
        changed["rnet"]["prelu1.weight"] = np.zeros_like(changed["rnet"]["prelu1.weight"])
    if mutation == "zeros":
        changed["onet"]["dense6_2.weight"] = np.zeros_like(changed["onet"]["dense6_2.weight"])
    found = run(mtcnn.build(changed).SerializeToString(), batch)
    with pytest.raises(AssertionError):
        compare(found, expected)


@pytest.mark.torch
def test_grace_hoppers_face_is_found_where_it_is(model: bytes) -> None:
    image = hopper()
    spec = load_catalogue()["mtcnn"]
    task = tasks.load("faces", Setup(spec.name, spec.recipe))
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = dict(zip(("boxes", "scores"), session.run(["boxes", "scores"], {"images": tensor(image)}), strict=True))
    answer = task.interpret(outputs, Image(image, image.shape[1], image.shape[0]))
    (box,) = answer.tensors["boxes"]
    assert faces.overlap(box, faces.HOPPER) > 0.7
    assert answer.tensors["scores"][0] > 0.99


@pytest.mark.parametrize("n", [1, 3])
def test_images_without_anything_are_a_batch_too(model: bytes, n: int) -> None:
    blank = np.zeros((n, 3, mtcnn.SIZE, mtcnn.SIZE), np.float32)
    assert [len(scores) for _, scores in run(model, blank)] == [0] * n


def test_more_faces_than_there_are_slots_are_as_many_as_there_are(model: bytes) -> None:
    # Given 176 faces of 29 pixels each, and beside them a frame with one
    crowd = faces.crowd(16, 11)
    both = np.concatenate([tensor(crowd), tensor(pixels("astronaut"))])
    found = run(model, both)
    assert len(found[0][1]) == mtcnn.MOST
    assert 1 <= len(found[1][1]) <= 2
    assert (np.diff(found[0][1]) <= 0).all()


def test_the_file_is_the_same_each_time_and_written_once(
    model: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "mtcnn.onnx"
    for says in ("written", "is there already"):
        assert mtcnn.main(["--wheel", str(WHEEL), "--out", str(out)]) == 0
        assert says in capsys.readouterr().out
    assert mtcnn.export(tmp_path / "again.onnx", WHEEL)
    assert out.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    out.write_bytes(out.read_bytes()[:1000])
    assert mtcnn.export(out, WHEEL)  # a damaged one is made anew


def test_a_wheel_that_is_not_it_is_refused(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "none.whl").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match=r"none.whl cannot be read.*pip download --no-deps facenet-pytorch"):
        mtcnn.read_weights(tmp_path / "none.whl")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("facenet_pytorch/data/pnet.pt", encode(pixels("coffee")))
    with pytest.raises(ConfigurationError, match=r"pnet.pt in .*other.whl has sha256"):
        mtcnn.read_weights(tmp_path / "other.whl")
