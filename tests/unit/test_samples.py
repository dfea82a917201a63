"""Samples: real photographs of the sizes promised, the same for the same seed, kept and mended on disk."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from loadgen import frames, samples
from loadgen.errors import PlanError
from loadgen.samples import SIZES, Sample
from services.preprocess.image_header import read_header
from tests import photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, list[Sample]]:
    return {size: samples.make(size, count, folder=folder) for size, count in (("small", 100), ("medium", 20))}


@pytest.fixture(scope="module")
def large(folder: Path) -> list[Sample]:
    return samples.make("large", 2, folder=folder)


def fresh(folder: Path, into: Path, size: str) -> Path:
    """A copy of the class's cache that a test may damage."""
    shutil.copytree(folder / f"{size}-1", into / f"{size}-1")
    return into


def index(folder: Path, size: str) -> dict[str, object]:
    return json.loads((folder / f"{size}-1" / "index.json").read_text())


@pytest.mark.parametrize("size", ["small", "medium"])
def test_files_have_the_size_that_their_class_promises(made: dict[str, list[Sample]], size: str) -> None:
    spec = SIZES[size]
    for sample in made[size]:
        header = read_header(sample.data)
        assert (header.format, header.width, header.height) == ("jpeg", spec.width, spec.height)
        assert (sample.width, sample.height) == (spec.width, spec.height)
        assert spec.low <= len(sample.data) <= spec.high
    mean = sum(len(sample.data) for sample in made[size]) / len(made[size])
    assert mean == pytest.approx({"small": 4_000, "medium": 120_000}[size], rel=0.03)


def test_the_classes_are_those_of_the_paper() -> None:
    assert {name: (s.width, s.height) for name, s in SIZES.items()} == {
        "small": (60, 70),
        "medium": (500, 375),
        "large": (3564, 2880),
    }


def test_large_files_have_the_entropy_of_a_camera(large: list[Sample]) -> None:
    for sample in large:
        assert (sample.width, sample.height) == (3564, 2880)
        assert 9_000_000 <= len(sample.data) <= 9_700_000
        assert 7 <= len(sample.data) * 8 / (3564 * 2880) <= 7.5


def test_large_images_are_tiles_at_native_resolution(large: list[Sample]) -> None:
    """Every tile is found, pixel for pixel but for JPEG's noise, in one of the photographs: nothing was scaled."""
    cv2 = pytest.importorskip("cv2")
    sources = [samples._decode(name) for name in SIZES["large"].sources]
    pixels = cv2.imdecode(np.frombuffer(large[0].data, np.uint8), cv2.IMREAD_COLOR)
    across, down = SIZES["large"].tile
    assert (3564 % across, 2880 % down) == (0, 0)

    def likeness(tile: np.ndarray) -> float:
        candidates = (tile, np.ascontiguousarray(tile[:, ::-1]))
        return max(cv2.matchTemplate(s, c, cv2.TM_CCOEFF_NORMED).max() for s in sources for c in candidates)

    for top, left in ((0, 0), (down, across * 3), (2880 - down, 3564 - across)):
        tile = pixels[top : top + down, left : left + across]
        assert likeness(tile) > 0.99
        # A tile that was scaled, if only by a fifth, is not found.
        assert likeness(cv2.resize(tile, None, fx=1.2, fy=1.2)[:down, :across]) < 0.97


@pytest.mark.parametrize("size", ["small", "medium"])
def test_files_are_distinct(made: dict[str, list[Sample]], size: str) -> None:
    assert len({sample.data for sample in made[size]}) == len(made[size])
    assert len({sample.name for sample in made[size]}) == len(made[size])


def test_a_crop_that_comes_twice_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = iter([b"one", b"one", b"two", b"one", b"three"])
    monkeypatch.setattr(samples, "_make_one", lambda *_: next(drawn))
    assert [s.data for s in samples.make("small", 3, folder=tmp_path)] == [b"one", b"two", b"three"]


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(
    made: dict[str, list[Sample]], tmp_path: Path
) -> None:
    assert samples.make("medium", 5, 1, tmp_path) == made["medium"][:5]
    assert not {s.data for s in samples.make("medium", 5, 2, tmp_path)} & {s.data for s in made["medium"]}


def test_a_second_run_reads_files(folder: Path, made: dict[str, list[Sample]]) -> None:
    progress: list[tuple[int, int]] = []
    again = samples.make("medium", 20, folder=folder, progress=lambda done, of: progress.append((done, of)))
    assert again == made["medium"]
    assert progress == []  # nothing was made
    assert samples.make("medium", 3, folder=folder) == made["medium"][:3]


def test_the_index_says_how_the_files_were_made(folder: Path, made: dict[str, list[Sample]]) -> None:
    said = index(folder, "small")
    assert (said["version"], said["size"], said["seed"]) == (1, "small", 1)
    files = said["files"]
    assert isinstance(files, list)
    assert [entry["sha256"] for entry in files] == [hashlib.sha256(s.data).hexdigest() for s in made["small"]]
    assert [entry["bytes"] for entry in files] == [len(s.data) for s in made["small"]]


def test_progress_is_told(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    samples.make("small", 3, folder=tmp_path, progress=lambda done, of: progress.append((done, of)))
    assert progress == [(1, 3), (2, 3), (3, 3)]


def flip_a_byte(place: Path) -> None:
    file = place / "small-007.jpg"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def another_version(place: Path) -> None:
    said = json.loads((place / "index.json").read_text())
    (place / "index.json").write_text(json.dumps({**said, "version": 0}))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        another_version,
        lambda place: (place / "small-050.jpg").unlink(),
        lambda place: (place / "small-050.jpg").write_bytes(b""),
        lambda place: (place / "index.json").unlink(),
        lambda place: (place / "index.json").write_text("{"),
        lambda place: (place / "index.json").write_text("[]"),
        lambda place: (place / "index.json").write_text('{"version": 1, "size": "small", "seed": 1, "files": [{}]}'),
    ],
    ids=["a byte", "version", "file gone", "file empty", "no index", "half an index", "a list", "empty entry"],
)
def test_a_damaged_cache_is_made_again(folder: Path, made: dict[str, list[Sample]], tmp_path: Path, damage) -> None:
    cache = fresh(folder, tmp_path, "small")
    damage(cache / "small-1")
    assert samples.make("small", 100, folder=cache) == made["small"]
    assert samples._read(cache / "small-1", "small", 1, 100) == made["small"]  # and mended


def test_a_cache_of_fewer_files_is_extended(made: dict[str, list[Sample]], tmp_path: Path) -> None:
    samples.make("small", 4, folder=tmp_path)
    assert samples.make("small", 9, folder=tmp_path) == made["small"][:9]


@pytest.mark.parametrize(
    ("size", "count", "says"),
    [
        ("huge", 1, "there is no size 'huge'; there are small, medium, large"),
        ("small", 0, "from 1 to 100"),
        ("small", 101, "from 1 to 100"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path: Path, size: str, count: int, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        samples.make(size, count, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(PlanError, match=r"samples cannot be kept in .*taken"):
        samples.make("small", 1, folder=tmp_path / "taken")


@pytest.mark.parametrize("name", samples._SOURCES)
def test_the_photographs_are_in_the_wheels(name: str) -> None:
    """By the wheel's own list of files: what is in it is never downloaded."""
    source = samples._SOURCES[name]
    distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[source.package]
    listed = {str(file) for file in metadata.files(distribution) or []}
    assert f"{source.package}/{source.path}" in listed


def test_a_package_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(samples._SOURCES, "coffee", samples._Source("nowhere_at_all", "coffee.png"))
    with pytest.raises(PlanError, match=r"nowhere_at_all, which is not installed; .*\[loadgen\]"):
        samples.make("small", 1, folder=tmp_path)
    monkeypatch.setitem(samples._SOURCES, "coffee", samples._Source("skimage", "data/gone.png"))
    with pytest.raises(PlanError, match=r"skimage does not ship data/gone\.png"):
        samples.make("small", 1, folder=tmp_path)


def test_photographs_are_whole_and_what_their_names_say() -> None:
    cv2 = pytest.importorskip("cv2")
    found = samples.photographs()
    assert [sample.name for sample in found] == ["coffee", "flower", "china", "chelsea"]
    for sample in found:
        reference = photographs.pixels(sample.name)  # by another way: scikit-image and scikit-learn themselves
        assert (sample.height, sample.width) == reference.shape[:2]
        decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(sample.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert np.abs(decoded.astype(int) - reference.astype(int)).mean() < 3


def test_own_images_are_read_by_name_with_the_sizes_of_their_headers(tmp_path: Path) -> None:
    chelsea = photographs.pixels("chelsea")
    (tmp_path / "b.PNG").write_bytes(photographs.encode(chelsea[:50, :40], "PNG"))
    (tmp_path / "a.jpeg").write_bytes(photographs.jpeg("chelsea"))
    (tmp_path / "c.webp").write_bytes(photographs.encode(chelsea[:30, :20], "WEBP"))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "sub.jpg").mkdir()
    assert [(s.name, s.width, s.height) for s in samples.from_folder(tmp_path)] == [
        ("a.jpeg", 451, 300),
        ("b.PNG", 40, 50),
        ("c.webp", 20, 30),
    ]
    assert samples.from_folder(tmp_path)[0].data == photographs.jpeg("chelsea")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.jpg", b"", r"x\.jpg cannot be used: the image is empty"),
        ("x.jpg", b"hello, I am text", r"x\.jpg cannot be used: .*replace or remove it"),
        ("x.png", b"\x89PNG\r\n\x1a\n", r"x\.png cannot be used: .*cut off"),
    ],
)
def test_an_own_image_that_is_none_is_named(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PlanError, match=says):
        samples.from_folder(tmp_path)


def test_a_cut_off_png_is_named(tmp_path: Path) -> None:
    whole = photographs.encode(photographs.pixels("chelsea")[:50, :40], "PNG")
    (tmp_path / "x.png").write_bytes(whole[:-20])
    with pytest.raises(PlanError, match="its end chunk is missing"):
        samples.from_folder(tmp_path)


def test_a_missing_or_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="gone cannot be read: No such file"):
        samples.from_folder(tmp_path / "gone")
    with pytest.raises(PlanError, match=r"there is no image in .*; put \.jpg"):
        samples.from_folder(tmp_path)


# --- frames with faces -----------------------------------------------------------------------------------------------


def test_frames_have_the_numbers_of_the_paper_and_one_size(tmp_path: Path) -> None:
    assert list(frames.FACES.values()) == [1, 2, 4, 8, 9, 16, 25, 32]
    for size in frames.FACES:
        (sample,) = samples.make(size, 1, folder=tmp_path)
        header = read_header(sample.data)
        assert (header.width, header.height) == (sample.width, sample.height) == (frames.WIDTH, frames.HEIGHT)
        assert 300_000 < len(sample.data) < 600_000


def test_frames_are_distinct_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first = samples.make("faces-9", 5, folder=tmp_path / "a")
    assert len({sample.data for sample in first}) == 5
    assert samples.make("faces-9", 5, folder=tmp_path / "b") == first
    assert samples.make("faces-9", 2, folder=tmp_path / "c") == first[:2]
    assert samples.make("faces-9", 5, folder=tmp_path / "a") == first  # read from what was kept
    assert samples.make("faces-9", 1, seed=2, folder=tmp_path / "d") != first[:1]


@pytest.mark.parametrize("faces", [0, 1, 9, 32])
def test_as_many_tiles_show_a_face_as_are_asked_for_and_nothing_is_upscaled(faces: int) -> None:
    # Given photographs in which every pixel says whose it is
    photographs = {name: np.full((600, 600, 3), 100 if name == frames.FACE else 7, np.uint8) for name in frames.SOURCES}
    generator = random.Random(3)  # noqa: S311 # tiles, no secrets
    frame = frames.compose(faces, photographs, generator.randrange)
    # Then of the tiles as many are of the face's photograph, lighter or darker, and the others of others
    across, down = 160, 180
    tiles = [frame[y : y + down, x : x + across] for y in range(0, 720, down) for x in range(0, 1280, across)]
    assert all(len(np.unique(tile)) == 1 for tile in tiles)
    assert sum(bool(tile.flat[0] > 80) for tile in tiles) == faces
    assert sum(bool(tile.flat[0] == 7) for tile in tiles) == 32 - faces
