"""WHAT: the images that are sent, as encoded files of three sizes, frames with faces, or the user's own.

Made from photographs that ordinary libraries ship inside their wheels, so nothing is downloaded, and the same seed
gives the same bytes. Nothing is ever upscaled: a decoder's work is mostly entropy decoding, and upscaled pixels have
little. A small or medium image is a crop, a large one a mosaic of crops, each at its native resolution, perhaps
mirrored; the JPEG quality is searched per image such that the file has the size that its class promises.

The photographs and their licences (docs/samples.md has the sources):

* scikit-image: `coffee` (CC0, Rachel Michetti), `chelsea` (CC0, Stéfan van der Walt), `astronaut` (NASA, public
  domain), `rocket` (SpaceX, public domain), `hubble_deep_field` (NASA, public domain), `ihc` (no known copyright
  restrictions).
* scikit-learn: `china` (CC BY 2.0, danielbuechele), `flower` (CC BY 2.0, vultilion).

Only in files that the wheels hold: most functions of `skimage.data` would download theirs, so none is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from loadgen import atomic, frames
from loadgen.errors import PlanError
from services.errors import UndecodableImage
from services.preprocess.image_header import check_end, read_header

Pixels = NDArray[np.uint8]  # [height, width, 3], BGR as cv2 has it
Progress = Callable[[int, int], None]  # (done, of)


class Sample(NamedTuple):
    """An encoded image; its width and height are those that its header says."""

    name: str
    data: bytes
    width: int
    height: int


class Size(NamedTuple):
    """A class of images: pixels, the range of its files' bytes, and the tiles that it is put together from.

    `quality` (luma, chroma) is tried first: where images are alike, as mosaics are, one encoding is enough.
    """

    width: int
    height: int
    low: int
    high: int
    tile: tuple[int, int]
    sources: tuple[str, ...]
    quality: tuple[int, int]


class _Source(NamedTuple):
    package: str
    path: str


_SOURCES: Mapping[str, _Source] = {
    "astronaut": _Source("skimage", "data/astronaut.png"),
    "chelsea": _Source("skimage", "data/chelsea.png"),
    "china": _Source("sklearn", "datasets/images/china.jpg"),
    "coffee": _Source("skimage", "data/coffee.png"),
    "flower": _Source("sklearn", "datasets/images/flower.jpg"),
    "hubble": _Source("skimage", "data/hubble_deep_field.jpg"),
    "ihc": _Source("skimage", "data/ihc.png"),
    "rocket": _Source("skimage", "data/rocket.jpg"),
}
# Those with the most detail: large files are 7 to 7.5 bits per pixel. All are larger than a tile.
_RICH = ("astronaut", "chelsea", "china", "coffee", "hubble", "ihc")

SIZES: Mapping[str, Size] = {
    "small": Size(60, 70, 3_700, 4_300, (60, 70), _RICH, (98, 98)),
    "medium": Size(500, 375, 115_000, 125_000, (500, 375), tuple(n for n in _SOURCES if n != "chelsea"), (98, 98)),
    "large": Size(3564, 2880, 9_000_000, 9_620_000, (297, 288), _RICH, (98, 97)),
}

# What can be made: sizes, and frames with faces, which are larger than a medium image and smaller than a large one.
NAMES: tuple[str, ...] = (*SIZES, *frames.FACES)
_FRAME_QUALITY = (95, 95)

# The four whose answers are shown in words.
_PHOTOGRAPHS = ("coffee", "flower", "china", "chelsea")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

MOST = 100  # distinct files per class
# Of what is made: raise it when the same seed gives other bytes, and caches are made anew.
_VERSION = 1
_FOLDER = Path("samples")
_LOWEST_QUALITY = 80  # below, photographs at native resolution are far from the sizes promised
_DRAWS = 200


def make(
    size: str, count: int, seed: int = 1, folder: Path | None = None, progress: Progress | None = None
) -> list[Sample]:
    """`count` distinct JPEG files of `size`, of `NAMES`, the same for the same seed; the first of more are these.

    Kept in `folder` (`samples/` here if None) and read from there the next time. Raises `PlanError`.
    """
    if size not in NAMES:
        raise PlanError(f"there is no size '{size}'; there are {', '.join(NAMES)}, or --images DIR for your own")
    if not 1 <= count <= MOST:
        raise PlanError(f"{count} {size} samples were asked for; from 1 to {MOST} can be made")
    place = (_FOLDER if folder is None else folder) / f"{size}-{seed}"
    kept = _read(place, size, seed, count)
    if kept is not None:
        return kept
    framed = size in frames.FACES
    photographs = {name: _decode(name) for name in (frames.SOURCES if framed else SIZES[size].sources)}
    width, height = (frames.WIDTH, frames.HEIGHT) if framed else (SIZES[size].width, SIZES[size].height)
    generator = random.Random(f"{_VERSION}/{size}/{seed}")  # noqa: S311 # crops, not secrets
    made: list[Sample] = []
    seen: set[bytes] = set()
    while len(made) < count:
        data = (_make_frame if framed else _make_one)(size, photographs, generator)
        digest = hashlib.sha256(data).digest()
        if digest in seen:
            continue
        seen.add(digest)
        made.append(Sample(f"{size}-{len(made):03d}", data, width, height))
        if progress is not None:
            progress(len(made), count)
    _keep(place, size, seed, made)
    return made


def from_folder(path: Path) -> list[Sample]:
    """The JPEG, PNG and WebP files in `path`, by name. Raises `PlanError` for one that is not what it seems."""
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
    except OSError as error:
        raise PlanError(f"the folder of images {path} cannot be read: {error.strerror or error}") from None
    if not files:
        raise PlanError(f"there is no image in {path}; put .jpg, .jpeg, .png or .webp files there")
    samples = []
    for file in files:
        try:
            data = file.read_bytes()
            header = read_header(data)
            check_end(data, header)
        except OSError as error:
            raise PlanError(
                f"{file} cannot be read: {error.strerror or error}; make it readable, or remove it"
            ) from None
        except UndecodableImage as error:
            raise PlanError(f"{file} cannot be used: {error}; replace or remove it") from None
        samples.append(Sample(file.name, data, header.width, header.height))
    return samples


def photographs() -> list[Sample]:
    """The four photographs whose contents are known, whole, as JPEG files: what answers in words are about."""
    found = []
    for name in _PHOTOGRAPHS:
        path = _path(name)
        pixels = _decode(name)
        data = path.read_bytes() if path.suffix == ".jpg" else _encode(pixels, (95, 95))
        found.append(Sample(name, data, pixels.shape[1], pixels.shape[0]))
    return found


def _path(name: str) -> Path:
    """Where the package is installed; it is not imported: that would take seconds."""
    source = _SOURCES[name]
    spec = importlib.util.find_spec(source.package)
    remedy = "install what samples are made from: pip install -e '.[loadgen]'"
    if spec is None or spec.origin is None:
        raise PlanError(f"the photograph '{name}' comes with {source.package}, which is not installed; {remedy}")
    path = Path(spec.origin).parent / source.path
    if not path.is_file():
        raise PlanError(f"{source.package} does not ship {source.path} any more; {remedy}, or give --images DIR")
    return path


def _decode(name: str) -> Pixels:
    pixels = cv2.imread(str(_path(name)), cv2.IMREAD_COLOR)
    if pixels is None:
        raise PlanError(f"the photograph {_path(name)} cannot be decoded; install its package anew")
    return np.asarray(pixels, np.uint8)


def _make_frame(size: str, photographs: Mapping[str, Pixels], generator: random.Random) -> bytes:
    return _encode(frames.compose(frames.FACES[size], photographs, _drawer(generator)), _FRAME_QUALITY)


def _drawer(generator: random.Random) -> Callable[[int], int]:
    """Of all of `random`, only `random()` is promised to give the same sequence in every Python version."""
    return lambda n: int(generator.random() * n)


def _make_one(size: str, photographs: Mapping[str, Pixels], generator: random.Random) -> bytes:
    spec = SIZES[size]
    for _ in range(_DRAWS):
        data = _fit(_mosaic(spec, photographs, generator), spec)
        if data is not None:  # else a crop with too little detail: sky, porcelain
            return data
    raise PlanError(f"no crop gives a {size} file of {spec.low} to {spec.high} bytes; try another seed")


def _mosaic(spec: Size, photographs: Mapping[str, Pixels], generator: random.Random) -> Pixels:
    canvas = np.empty((spec.height, spec.width, 3), np.uint8)
    across, down = spec.tile
    draw = _drawer(generator)
    for top in range(0, spec.height, down):
        for left in range(0, spec.width, across):
            photograph = photographs[spec.sources[draw(len(spec.sources))]]
            y, x = draw(photograph.shape[0] - down + 1), draw(photograph.shape[1] - across + 1)
            tile = photograph[y : y + down, x : x + across]
            canvas[top : top + down, left : left + across] = tile[:, ::-1] if draw(2) else tile
    return canvas


def _encode(pixels: Pixels, quality: tuple[int, int]) -> bytes:
    """Luma and chroma quality; colour is subsampled (4:2:0) where they are equal, and is not (4:4:4) otherwise."""
    luma, chroma = quality
    flags = [cv2.IMWRITE_JPEG_QUALITY, luma]
    if luma != chroma:
        flags += [cv2.IMWRITE_JPEG_LUMA_QUALITY, luma, cv2.IMWRITE_JPEG_CHROMA_QUALITY, chroma]
    done, data = cv2.imencode(".jpg", pixels, flags)
    if not done:
        raise PlanError("OpenCV cannot encode JPEG here; install opencv-python-headless anew")
    return data.tobytes()


def _fit(pixels: Pixels, spec: Size) -> bytes | None:
    """The file with the size that is promised; None where no quality gives it.

    First 4:2:0, as most files are. Qualities near 100 are far apart in bytes, so where two neighbours lie on either
    side of the range, colour is kept in full and its quality varied, beside that of brightness.
    """
    first = _encode(pixels, spec.quality)
    if spec.low <= len(first) <= spec.high:
        return first
    luma, data = _largest(pixels, [(q, q) for q in range(_LOWEST_QUALITY, 101)], spec.high)
    if len(data) >= spec.low:
        return data if len(data) <= spec.high else None
    for lower in range(luma[0], max(luma[0] - 4, _LOWEST_QUALITY), -1):
        chromas = [(lower, q) for q in range(_LOWEST_QUALITY, 101) if q != lower]
        _, data = _largest(pixels, chromas, spec.high)
        if spec.low <= len(data) <= spec.high:
            return data
    return None


def _largest(pixels: Pixels, qualities: Sequence[tuple[int, int]], most: int) -> tuple[tuple[int, int], bytes]:
    """The best of `qualities` (ascending) whose file has at most `most` bytes; the first if all have more."""
    low, high = 0, len(qualities) - 1
    best: bytes | None = None
    while low < high:
        middle = (low + high + 1) // 2
        data = _encode(pixels, qualities[middle])
        if len(data) <= most:
            low, best = middle, data
        else:
            high = middle - 1
    return qualities[low], _encode(pixels, qualities[0]) if best is None else best


def _read(place: Path, size: str, seed: int, count: int) -> list[Sample] | None:
    """The first `count` of what is kept; None where it was made otherwise, is not enough, or is damaged."""
    try:
        index: Any = json.loads((place / "index.json").read_text(encoding="utf-8"))
        if (index["version"], index["size"], index["seed"]) != (_VERSION, size, seed):
            return None
        samples = []
        for entry in index["files"][:count]:
            data = (place / entry["name"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                return None
            samples.append(Sample(Path(entry["name"]).stem, data, entry["width"], entry["height"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return samples if len(samples) == count else None


def _keep(place: Path, size: str, seed: int, samples: Sequence[Sample]) -> None:
    """The index comes last, and every file appears whole: what is read later is complete, or is made again."""
    index = {
        "version": _VERSION,
        "size": size,
        "seed": seed,
        "files": [
            {
                "name": f"{s.name}.jpg",
                "width": s.width,
                "height": s.height,
                "bytes": len(s.data),
                "sha256": hashlib.sha256(s.data).hexdigest(),
            }
            for s in samples
        ],
    }
    try:
        for sample in samples:
            atomic.write(place / f"{sample.name}.jpg", sample.data)
        atomic.write(place / "index.json", json.dumps(index, indent=1) + "\n")
    except OSError as error:
        raise PlanError(
            f"samples cannot be kept in {place}: {error.strerror or error}; start where you may write, or make room"
        ) from None
