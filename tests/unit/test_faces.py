"""Faces: which boxes are faces, what is cut out for the identifier, who it is, and the file of those enrolled."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from services import tasks
from services.errors import ConfigurationError, Internal
from services.messages import Answer, Image, Recipe, Tensors, TensorSpec
from services.tasks.faces import MARGIN, Faces, crop
from services.tasks.gallery import NOBODY, Gallery, read_gallery, write_gallery
from services.tasks.task import Setup, Task

LETTERBOX = Recipe(100, 100, (0, 0, 0), (1, 1, 1), fit="letterbox")
SQUARE = Recipe(8, 8, (0, 0, 0), (1, 1, 1), fit="stretch")
EMBEDDINGS = (TensorSpec("embeddings", "float32", (-1, 4)),)


def image(width: int = 400, height: int = 200) -> Image:
    """Each pixel says where it is."""
    rows, columns = np.mgrid[:height, :width]
    return Image(np.stack([rows % 256, columns % 256, rows // 256], axis=2).astype(np.uint8), width, height)


def found(*rows: tuple[float, ...]) -> Tensors:
    """Candidates: left, top, right, bottom, score."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return {"boxes": table[None, :, :4], "scores": table[None, :, 4]}


def faces() -> Task:
    return tasks.load("faces", Setup("detector", LETTERBOX))


def identification(gallery: Path | None = None, threshold: float | None = None, model: str = "net") -> Task:
    return tasks.load("identification", Setup(model, SQUARE, (), EMBEDDINGS, threshold, gallery))


def identity(task: Task, *embedding: float) -> tuple[str, float]:
    answer = task.interpret({"embeddings": np.array([embedding], np.float32)}, image())
    return bytes(answer.tensors["identities"][()]).decode(), float(answer.tensors["similarities"])


def kept(tmp_path: Path, *people: tuple[str, tuple[float, ...]], model: str = "net") -> Path:
    gallery = Gallery(model)
    for name, embedding in people:
        gallery = gallery.enrolled(name, np.array(embedding, np.float32))
    write_gallery(tmp_path / "gallery.npz", gallery)
    return tmp_path / "gallery.npz"


# --- where -----------------------------------------------------------------------------------------------------------


def test_a_face_within_a_face_and_what_is_unlikely_is_none() -> None:
    # Given two candidates about one face, one within the other, a second face, a doubtful one, and an empty slot
    outputs = found(
        (0.1, 0.1, 0.3, 0.3, 0.99), (0.15, 0.15, 0.25, 0.25, 0.98), (0.5, 0.1, 0.6, 0.2, 0.95), (0.8, 0, 0.9, 0.1, 0.5),
        (0, 0, 0, 0, 0),
    )  # fmt: skip
    answer = faces().interpret(outputs, image())
    # Then there are two, in pixels of the original
    np.testing.assert_allclose(answer.tensors["boxes"], [[40, 40, 120, 120], [200, 40, 240, 80]], rtol=1e-5)
    np.testing.assert_allclose(answer.tensors["scores"], [0.99, 0.95])


def test_a_hundred_faces_are_a_hundred_crops() -> None:
    # The image is 100 x 50 of the letterbox's pixels
    outputs = found(*((x / 20, y / 10, (x + 1) / 20, (y + 1) / 10, 0.99) for x in range(20) for y in range(5)))
    answer = faces().interpret(outputs, image())
    follow_up = faces().follow_up(image(), answer)
    assert follow_up is not None
    assert len(answer.tensors["boxes"]) == len(follow_up.crops) == 100


def test_a_crop_is_the_square_about_the_face_with_its_margin_within_the_image() -> None:
    whole = image()
    # A face of 40 x 80 pixels in the middle: its crop has 80 pixels and the margin on either side
    side = round(80 * (1 + 2 * MARGIN))
    part = crop(whole, np.array([180, 60, 220, 140], np.float32))
    assert (part.width, part.height) == part.pixels.shape[1::-1] == (side, side)
    assert part.pixels[0, 0].tolist() == [100 - side // 2, 200 - side // 2, 0]
    # At the edge it ends there
    part = crop(whole, np.array([-10, 0, 30, 40], np.float32))
    assert part.pixels.shape[:2] == (44, 34)
    # and however small or far off, it has a pixel
    assert crop(whole, np.array([400, 200, 400, 200], np.float32)).pixels.shape == (1, 1, 3)


def test_of_an_image_that_a_decoder_has_shrunk_the_same_part_is_cut_out() -> None:
    whole = image()
    shrunk = Image(whole.pixels[::2, ::2], whole.width, whole.height)
    box = np.array([100, 50, 200, 150], np.float32)
    large, small = crop(whole, box), crop(shrunk, box)
    assert small.pixels.shape[0] == large.pixels.shape[0] // 2
    assert small.pixels[0, 0].tolist() == large.pixels[0, 0].tolist()


def test_the_answer_has_a_row_for_each_face_or_none() -> None:
    asked = identification()

    def answer(*rows: tuple[float, ...]) -> Answer:
        where = faces().interpret(found(*rows), image())
        follow_up = faces().follow_up(image(), where)
        assert follow_up is not None
        whose = [
            asked.interpret({"embeddings": np.eye(4, dtype=np.float32)[None, i]}, part)
            for i, part in enumerate(follow_up.crops)
        ]
        return follow_up.conclude(whose, asked.outputs)

    two = answer((0.5, 0.1, 0.6, 0.2, 0.95), (0.1, 0.1, 0.3, 0.3, 0.99)).tensors
    assert two["boxes"].shape == (2, 4)
    np.testing.assert_array_equal(two["embeddings"], np.eye(4)[:2])
    assert two["identities"].tolist() == [b"", b""]
    none = answer((0, 0, 0.1, 0.1, 0.1)).tensors
    assert {name: (value.shape, value.dtype.kind) for name, value in none.items()} == {
        "boxes": ((0, 4), "f"),
        "scores": ((0,), "f"),
        "embeddings": ((0, 4), "f"),
        "identities": ((0,), "O"),
        "similarities": ((0,), "f"),
        "model": ((0,), "O"),
    }
    assert list(none)[:5] == [spec.name for spec in Faces.outputs]


# --- who -------------------------------------------------------------------------------------------------------------


def test_who_is_most_alike_is_named_from_the_threshold_on(tmp_path: Path) -> None:
    gallery = kept(tmp_path, ("Ada", (2, 0, 0, 0)), ("Grace", (0, 3, 0, 0)), ("Ada", (0, 0, 5, 0)))
    task = identification(gallery, 0.8)
    assert identity(task, 7, 0, 0, 0) == ("Ada", 1.0)
    assert identity(task, 0, 0, 0.5, 0) == ("Ada", 1.0)  # another of her faces
    assert identity(task, 3, 4, 0, 0) == ("Grace", pytest.approx(0.8))
    assert identity(task, 4, 4, 0, 0) == ("", pytest.approx(0.5**0.5))
    assert identity(task, 0, 0, 0, 9) == ("", 0.0)
    assert identity(identification(gallery), 4, 4, 0, 0)[0] == "Ada"  # a tie: who was enrolled first


def test_nobody_is_known_without_a_gallery_or_with_an_empty_one(tmp_path: Path) -> None:
    for gallery in (None, kept(tmp_path)):
        assert identity(identification(gallery, 0.0), 1, 0, 0, 0) == ("", NOBODY)


def test_an_embedding_has_length_one_whatever_the_network_says() -> None:
    answer = identification().interpret({"embeddings": np.array([[3, 0, 4, 0]], np.float16)}, image()).tensors
    np.testing.assert_allclose(answer["embeddings"], [0.6, 0, 0.8, 0], atol=1e-3)
    assert answer["embeddings"].dtype == np.float32
    zeros = identification().interpret({"embeddings": np.zeros((1, 4), np.float32)}, image()).tensors
    assert not zeros["embeddings"].any()  # an emulated model's


def test_an_embedding_that_is_no_number_is_a_fault() -> None:
    with pytest.raises(Internal, match="not finite"):
        identity(identification(), 1, np.nan, 0, 0)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_gallery_is_read_as_it_was_written(tmp_path: Path) -> None:
    gallery = Gallery("net").enrolled("Ada Lovelace", np.array([3, 4], np.float32)).enrolled("Çelik", np.ones(2))
    write_gallery(tmp_path / "deep" / "g.npz", gallery)
    again = read_gallery(tmp_path / "deep" / "g.npz")
    assert (again.model, again.names) == ("net", ("Ada Lovelace", "Çelik"))
    np.testing.assert_allclose(again.embeddings, [[0.6, 0.8], [0.5**0.5, 0.5**0.5]], rtol=1e-6)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["g.npz"]


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, model=np.array("net"), names=np.array(["Ada", None], dtype=object), embeddings=np.zeros((2, 4)))
    return buffer.getvalue()


def with_arrays(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"model": np.array("net"), "names": np.array(["A"]), **arrays})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        pickled(),
        pickled()[:200],
        with_arrays(),
        with_arrays(embeddings=np.zeros((2, 4), np.float32)),
        with_arrays(embeddings=np.zeros((1, 4))),
        with_arrays(embeddings=np.full((1, 4), np.nan, np.float32)),
        with_arrays(embeddings=np.zeros((1, 4), np.float32), names=np.array([1])),
    ],
)
def test_what_is_no_gallery_is_refused_and_nothing_in_it_runs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"the gallery .*g.npz .*services.enroll` writes one"):
        read_gallery(tmp_path / "g.npz")


def test_a_gallery_that_is_not_there_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        identification(tmp_path / "none.npz")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_gallery(tmp_path / "file" / "g.npz", Gallery("net"))


def test_a_gallery_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"embeddings of model 'other', not of 'net'.*enroll with this one"):
        identification(kept(tmp_path, ("Ada", (1, 0, 0, 0)), model="other"))
    with pytest.raises(ConfigurationError, match=r"embeddings of 3 numbers, model 'net' answers 4; enroll anew"):
        identification(kept(tmp_path, ("Ada", (1, 0, 0))))


def test_what_cannot_be_enrolled_is_refused() -> None:
    gallery = Gallery("net").enrolled("Ada", np.ones(4))
    for name in ("", "Ada\n"):
        with pytest.raises(ConfigurationError, match="give a person's name"):
            gallery.enrolled(name, np.ones(4))
    with pytest.raises(ConfigurationError, match="has 3 numbers, those of the gallery 4"):
        gallery.enrolled("Grace", np.ones(3))
    for nothing in (np.zeros(4), np.full(4, np.inf)):
        with pytest.raises(ConfigurationError, match="nothing that could be compared"):
            gallery.enrolled("Grace", nothing)
