"""One suite over the table of preprocessors: what they decode, what they refuse, and that recipes are obeyed.

Those for GPUs run where a GPU is; and everywhere with torch's CPU device in place of it, and in place of nvJPEG
torchvision's decoder on the CPU, or DALI's: then all but these is what runs on a GPU.
"""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from services.accounting import UNKNOWN_CPU, Stage, Timeline
from services.errors import ConfigurationError, ImageTooLarge, Internal, UndecodableImage
from services.messages import Image as DecodedImage
from services.messages import Recipe
from services.preprocess.opencv import OpenCvPreprocessor
from services.preprocess.preprocessor import TABLE, Preprocessor, load
from tests.brokered import eventually
from tests.photographs import encode, jpeg, pixels
from tests.unit.test_image_header import png_claiming

RECIPE = Recipe(224, 256, (127, 127, 127), (128, 128, 128))
LIMIT = 100_000_000


GPU_ON_CPU = "gpu-on-cpu"
DALI_ON_CPU = "dali-on-cpu"
# torchvision says of every image that its decoders are deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


def rows() -> list[Any]:
    """Those of the table; what needs torch, with the marker."""
    names = (*sorted(TABLE), GPU_ON_CPU, DALI_ON_CPU)
    return [pytest.param(name, id=name, marks=[] if name == "opencv" else [pytest.mark.torch]) for name in names]


def make(name: str, limit: int = LIMIT) -> Preprocessor:
    if name == GPU_ON_CPU:
        return gpu_on_cpu(limit)
    if name == DALI_ON_CPU:
        return dali_on_cpu(limit)
    if name in ("gpu", "dali"):
        import torch

        if torch.cuda.device_count() == 0:
            pytest.skip("no CUDA device is here")
    return load(name, limit, scaled=True)


def gpu_on_cpu(limit: int) -> Preprocessor:
    from torchvision.io import ImageReadMode, decode_jpeg

    from services.preprocess import gpu, opencv
    from tests.fake_cuda import FakeCuda, lane

    return gpu.GpuPreprocessor(
        opencv.load(limit, scaled=True),
        limit,
        gpu.Decoding("torchvision", lambda _: lambda data: decode_jpeg(data, mode=ImageReadMode.RGB)),
        lambda: lane(FakeCuda()),
    )


def dali_on_cpu(limit: int) -> Preprocessor:
    pytest.importorskip("nvidia.dali", reason="DALI is not here: it is for Linux")
    from services.preprocess import dali, gpu, opencv
    from tests.fake_cuda import FakeCuda, lane

    return gpu.GpuPreprocessor(
        opencv.load(limit, scaled=True), limit, gpu.Decoding("DALI", dali.decoder), lambda: lane(FakeCuda())
    )


@pytest.fixture(params=rows())
def preprocessor(request: pytest.FixtureRequest) -> Preprocessor:
    return make(request.param)


def decoded(preprocessor: Preprocessor, data: bytes, shorter: int = 0) -> np.ndarray:
    return on_host(preprocessor, data, shorter).pixels


def on_host(preprocessor: Preprocessor, data: bytes, shorter: int = 0) -> DecodedImage:
    """Decoded, its pixels an array; the time of that is tiled."""
    timeline = Timeline("test")
    image = preprocessor.to_host(preprocessor.decode(data, timeline, shorter), timeline)
    assert isinstance(image.pixels, np.ndarray)
    assert [tile.stage for tile in timeline.tiles] in ([Stage.DECODE], [Stage.DECODE, Stage.DOWNLOAD])
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns
    return image


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference, in levels of 0..255."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_colours_are_rgb_and_right(preprocessor: Preprocessor, format_: str) -> None:
    # Given a photograph in which red and blue differ
    original = pixels("coffee")
    assert difference(original, original[:, :, ::-1]) > 20
    # When it is decoded
    image = on_host(preprocessor, encode(original, format_))
    # Then it is the photograph, up to the codec's loss, and says its size
    assert difference(image.pixels, original) < 4
    assert (image.width, image.height) == (original.shape[1], original.shape[0])


def test_valid_oddities_are_answered_right(preprocessor: Preprocessor) -> None:
    rgb = pixels("coffee")
    gray = np.asarray(Image.fromarray(rgb).convert("L"))
    # Grayscale: three equal channels
    assert difference(decoded(preprocessor, encode(gray)), np.stack([gray] * 3, axis=2)) < 3
    # CMYK: as Pillow, another library, converts it back
    cmyk = Image.fromarray(rgb).convert("CMYK")
    assert difference(decoded(preprocessor, encode(cmyk, quality=98)), rgb) < 6
    # Alpha: dropped
    rgba = Image.fromarray(rgb).convert("RGBA")
    rgba.putalpha(Image.fromarray(gray))
    assert difference(decoded(preprocessor, encode(rgba, "PNG")), rgb) == 0
    # 16 bits: the upper 8
    sixteen = cv2.imencode(".png", rgb[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert difference(decoded(preprocessor, sixteen), rgb) <= 1
    # Palette
    palette = Image.fromarray(rgb).quantize(64)
    assert difference(decoded(preprocessor, encode(palette, "PNG")), np.asarray(palette.convert("RGB"))) == 0
    # Progressive
    assert difference(decoded(preprocessor, encode(rgb, progressive=True)), decoded(preprocessor, encode(rgb))) < 1
    # One pixel
    assert decoded(preprocessor, encode(np.full((1, 1, 3), 200, np.uint8), "PNG")).tolist() == [[[200, 200, 200]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shorter", [0, 40])
def test_exif_rotation_is_applied(preprocessor: Preprocessor, orientation: int, shorter: int) -> None:
    # Given a photograph with a camera's orientation tag, of which Pillow knows the upright form
    image = Image.fromarray(pixels("chelsea"))
    exif = image.getexif()
    exif[0x0112] = orientation
    data = encode(image, exif=exif)
    import io

    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    # When it is decoded, in full or shrunk by the decoder
    result = on_host(preprocessor, data, shorter)
    # Then it is upright, and says its upright size
    assert (result.width, result.height) == upright.size
    small = upright.resize((result.pixels.shape[1], result.pixels.shape[0]), Image.Resampling.BOX)
    assert difference(result.pixels, np.asarray(small)) < 6


def test_what_cannot_be_decoded_is_refused(preprocessor: Preprocessor) -> None:
    whole = jpeg("coffee")
    for data in (b"", b"text", whole[: len(whole) // 2], whole[:300], encode(pixels("coffee"), "PNG")[:-20]):
        with pytest.raises(UndecodableImage):
            preprocessor.decode(data, Timeline("test"))


def test_a_damaged_body_is_refused_or_decoded_never_worse(preprocessor: Preprocessor) -> None:
    data = bytearray(encode(pixels("coffee"), "PNG"))
    data[len(data) // 2 : len(data) // 2 + 400] = b"\0" * 400
    with pytest.raises(UndecodableImage):
        preprocessor.decode(bytes(data), Timeline("test"))


def test_a_bomb_is_refused_from_its_header(preprocessor: Preprocessor) -> None:
    # Given a header that claims 2.7 GB of pixels
    data = png_claiming(30_000, 30_000)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match="30000 x 30000"):
            preprocessor.decode(data, Timeline("test"))
        # Then memory stays flat
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", rows())
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_the_limit_of_pixels_itself_is_accepted(name: str, format_: str) -> None:
    data = encode(np.zeros((30, 40, 3), np.uint8), format_)
    assert make(name, 1_200).decode(data, Timeline("test")).width == 40
    with pytest.raises(ImageTooLarge):
        make(name, 1_199).decode(data, Timeline("test"))


@pytest.mark.parametrize("name", ["coffee", "china", "chelsea", "flower"])
def test_the_recipe_is_obeyed(preprocessor: Preprocessor, name: str) -> None:
    # Given the recipe written out plainly with OpenCV's resize
    rgb = pixels(name)
    height, width = rgb.shape[:2]
    scale = 256 / min(height, width)
    resized = cv2.resize(rgb, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    expected = (resized[top : top + 224, left : left + 224].astype(np.float32) - 127) / 128
    # When the preprocessor prepares the same pixels
    timeline = Timeline("test")
    image = preprocessor.decode(encode(rgb, "PNG"), timeline)
    tensor = preprocessor.prepare(image, RECIPE, timeline)
    # Then it is the same tensor, but where the mean of an area lies half-way between two levels, and its time is tiled
    assert tensor.shape == (1, 3, 224, 224)
    assert tensor.dtype == np.float32
    off = np.abs(tensor[0] - expected.transpose(2, 0, 1)) * 128
    assert off.max() <= (0 if isinstance(preprocessor, OpenCvPreprocessor) else 1.001)
    assert (off > 0).mean() < 0.01
    moved = (Stage.UPLOAD, Stage.DOWNLOAD)
    assert [t.stage for t in timeline.tiles if t.stage not in moved] == [Stage.DECODE, Stage.RESIZE, Stage.NORMALIZE]
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns


@pytest.mark.parametrize("interpolation", ["area", "linear", "cubic"])
@pytest.mark.parametrize("name", rows())
@pytest.mark.parametrize("enlarged", [False, True])
def test_every_interpolation_is_opencvs(name: str, interpolation: str, enlarged: bool) -> None:
    # Given pixels that OpenCV's preprocessor prepares, too
    recipe = Recipe(224, 256, (127, 127, 127), (128, 128, 128), interpolation=interpolation)
    data = encode(pixels("coffee")[:200] if enlarged else pixels("coffee"), "PNG")
    reference = make("opencv")
    expected = reference.prepare(reference.decode(data, Timeline("test")), recipe, Timeline("test"))
    preprocessor = make(name)
    tensor = preprocessor.prepare(preprocessor.decode(data, Timeline("test")), recipe, Timeline("test"))
    # Then the signal is 45 dB above the difference: OpenCV computes with 11 bits of a weight
    error = float(((tensor - expected) ** 2).mean())
    assert 10 * np.log10(float((expected**2).mean()) / max(error, 1e-12)) > 45


def test_other_layouts_and_types(preprocessor: Preprocessor) -> None:
    recipe = Recipe(224, 256, (127, 127, 127), (128, 128, 128), layout="HWC", dtype="uint8")
    image = preprocessor.decode(encode(pixels("coffee"), "PNG"), Timeline("test"))
    tensor = preprocessor.prepare(image, recipe, Timeline("test"))
    normalized = preprocessor.prepare(image, RECIPE, Timeline("test"))
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal((tensor[0].astype(np.float32) - 127) / 128, normalized[0].transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 7), (224, 224), (256, 256), (257, 255)])
def test_every_shape_gives_the_recipes_tensor(preprocessor: Preprocessor, shape: tuple[int, int]) -> None:
    image = preprocessor.decode(encode(np.full((*shape, 3), 90, np.uint8), "PNG"), Timeline("test"))
    tensor = preprocessor.prepare(image, RECIPE, Timeline("test"))
    np.testing.assert_allclose(tensor, np.full((1, 3, 224, 224), (90 - 127) / 128), atol=1e-6)


def test_shrinking_while_decoding_changes_little(preprocessor: Preprocessor) -> None:
    # Given a large photograph, of which 256 pixels are used
    large = np.tile(pixels("china"), (4, 4, 1))
    data = encode(large)
    full = preprocessor.prepare(preprocessor.decode(data, Timeline("test")), RECIPE, Timeline("test"))
    # When the decoder may shrink it
    image = preprocessor.decode(data, Timeline("test"), RECIPE.crop)
    assert min(image.pixels.shape[:2]) >= RECIPE.crop  # a decoder that cannot shrink has all of them
    assert (image.width, image.height) == (large.shape[1], large.shape[0])
    shrunk = preprocessor.prepare(image, RECIPE, Timeline("test"))
    # Then the signal is 20 dB above the difference, and pixels are off by a few levels
    error = float(((full - shrunk) ** 2).mean())
    assert 10 * np.log10(float((full**2).mean()) / max(error, 1e-12)) > 20
    assert difference((full * 128 + 127).round(), (shrunk * 128 + 127).round()) < 4


# --- fitted into the square ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_a_stretched_image_is_all_of_it(preprocessor: Preprocessor, name: str) -> None:
    recipe = Recipe(160, 160, (127, 127, 127), (128, 128, 128), fit="stretch")
    rgb = pixels(name)
    image = preprocessor.decode(encode(rgb, "PNG"), Timeline("test"))
    tensor = preprocessor.prepare(image, recipe, Timeline("test"))
    expected = np.asarray(Image.fromarray(rgb).resize((160, 160), Image.Resampling.BOX))
    assert tensor.shape == (1, 3, 160, 160)
    assert difference(tensor[0].transpose(1, 2, 0) * 128 + 127, expected) < 2


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_letterboxed_image_keeps_its_proportions_and_the_rest_is_the_mean(
    preprocessor: Preprocessor, turned: bool, dtype: str
) -> None:
    recipe = Recipe(160, 160, (127.5, 120, 300), (128, 128, 128), dtype=dtype, layout="HWC", fit="letterbox")
    rgb = pixels("coffee")[:300, :600]
    if turned:
        rgb = np.ascontiguousarray(rgb.swapaxes(0, 1))
    image = preprocessor.decode(encode(rgb, "PNG"), Timeline("test"))
    tensor = preprocessor.prepare(image, recipe, Timeline("test"))[0]
    if turned:
        tensor = tensor.swapaxes(0, 1)
        rgb = rgb.swapaxes(0, 1)
    expected = np.asarray(Image.fromarray(rgb).resize((160, 80), Image.Resampling.BOX))
    shown, rest = tensor[:80], tensor[80:]
    if dtype == "uint8":
        assert difference(shown, expected) < 2
        assert np.unique(rest.reshape(-1, 3), axis=0).tolist() == [[128, 120, 255]]
    else:
        assert difference(shown * 128 + np.array([127.5, 120, 300]), expected) < 2
        assert not rest.any()


def test_of_a_shrunk_image_the_originals_proportions_count(preprocessor: Preprocessor) -> None:
    """Decoded to an eighth, 817 x 1600 pixels are 103 x 200: as a letterbox of its own that would be a pixel wider."""
    recipe = Recipe(100, 100, (0, 0, 0), (1, 1, 1), fit="letterbox")
    image = preprocessor.decode(encode(np.full((1600, 817, 3), 200, np.uint8)), Timeline("test"), recipe.crop)
    # A decoder that cannot shrink has all of them
    assert image.pixels.shape == ((200, 103, 3) if isinstance(preprocessor, OpenCvPreprocessor) else (1600, 817, 3))
    tensor = preprocessor.prepare(image, recipe, Timeline("test"))[0]
    assert recipe.extent(817, 1600) == (51, 100)
    assert recipe.extent(103, 200) == (52, 100)
    assert tensor[:, :, :51].all()
    assert not tensor[:, :, 51:].any()


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 7), (224, 224)])
def test_every_shape_fits(preprocessor: Preprocessor, shape: tuple[int, int], fit: str) -> None:
    recipe = Recipe(224, 224, (80, 80, 80), (10, 10, 10), fit=fit)
    image = preprocessor.decode(encode(np.full((*shape, 3), 90, np.uint8), "PNG"), Timeline("test"))
    tensor = preprocessor.prepare(image, recipe, Timeline("test"))
    width, height = recipe.extent(shape[1], shape[0])
    np.testing.assert_allclose(tensor[:, :, :height, :width], 1, atol=1e-6)
    assert tensor.sum() == pytest.approx(3 * width * height, rel=1e-4)


@pytest.mark.parametrize("name", rows())
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_every_fit_is_opencvs(name: str, fit: str, dtype: str) -> None:
    recipe = Recipe(160, 160, (123.6, 116.2, 103.5), (58, 57, 57), dtype=dtype, fit=fit)
    data = encode(pixels("chelsea"), "PNG")
    first, second = (
        p.prepare(p.decode(data, Timeline("test")), recipe, Timeline("test"))[0] for p in (make("opencv"), make(name))
    )
    assert first.dtype == second.dtype == dtype
    first, second = first.astype(np.float32), second.astype(np.float32)
    level = 1 if dtype == "uint8" else 1.03 / 57
    assert np.abs(first - second).max() <= level
    assert (first != second).mean() < 0.01


# --- a GPU's own -----------------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("name", ["gpu", "dali"])
def test_a_gpu_that_is_absent_is_one_clear_error(name: str) -> None:
    import torch

    if torch.cuda.device_count():
        pytest.skip("a CUDA device is here")
    with pytest.raises(ConfigurationError, match=r"'cuda' was asked for.*nvidia-smi.*use --preprocessor opencv"):
        load(name, LIMIT, scaled=True)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("gpu", "torch", "torch"),
        ("dali", "torch", "dali"),
        pytest.param("dali", "nvidia.dali.experimental", "dali", marks=pytest.mark.torch),
    ],
)
def test_a_preprocessor_whose_package_is_absent_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for module in (*TABLE.values(), "services.cuda"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    says = rf"'{name}' needs the Python package '{package}'.*beyond-inference\[{extra}\].*--preprocessor opencv"
    with pytest.raises(ConfigurationError, match=says):
        load(name, LIMIT, scaled=True)


@pytest.mark.torch
def test_what_the_device_does_not_decode_the_cpu_does_and_the_ledger_says_whose_time_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    import torch

    from services.preprocess import gpu, opencv
    from tests.fake_cuda import FakeCuda, lane

    def refuse(data: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("nvjpegDecode failed: NVJPEG_STATUS_JPEG_NOT_SUPPORTED")

    preprocessor = gpu.GpuPreprocessor(
        opencv.load(LIMIT, scaled=True), LIMIT, gpu.Decoding("nvJPEG", lambda _: refuse), lambda: lane(FakeCuda())
    )
    for data in (jpeg("coffee"), jpeg("chelsea"), encode(pixels("coffee"), "PNG")):
        timeline = Timeline("test")
        image = preprocessor.decode(data, timeline)
        preprocessor.prepare(image, RECIPE, timeline)
        stages = [(tile.stage, tile.cpu_ns != UNKNOWN_CPU) for tile in timeline.tiles]
        assert stages == [
            (Stage.DECODE, True),
            (Stage.UPLOAD, False),
            (Stage.RESIZE, False),
            (Stage.NORMALIZE, False),
            (Stage.DOWNLOAD, False),
        ]
    # Then each reason is said once
    jpeg_, png = (record.message for record in caplog.records)
    assert "a JPEG that nvJPEG does not take was decoded on the CPU: nvjpegDecode failed" in jpeg_
    assert "png images are decoded on the CPU" in png


@pytest.mark.torch
def test_what_a_device_decodes_stays_there_until_the_tensor_is_done() -> None:
    preprocessor = gpu_on_cpu(LIMIT)
    timeline = Timeline("test")
    image = preprocessor.decode(jpeg("coffee"), timeline)
    assert not isinstance(image.pixels, np.ndarray)
    tensor = preprocessor.prepare(image, RECIPE, timeline)
    assert [tile.stage for tile in timeline.tiles] == [
        Stage.DECODE,
        Stage.RESIZE,
        Stage.NORMALIZE,
        Stage.DOWNLOAD,
    ]
    assert {tile.cpu_ns for tile in timeline.tiles} == {UNKNOWN_CPU}
    # And the caller's tensor is not the buffer that the next one comes through
    kept = tensor.copy()
    preprocessor.prepare(preprocessor.decode(jpeg("china"), Timeline("test")), RECIPE, Timeline("test"))
    np.testing.assert_array_equal(tensor, kept)


@pytest.mark.torch
def test_a_device_that_fails_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.preprocess import gpu

    def full(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory" + " and a stack" * 1000)

    preprocessor = gpu_on_cpu(LIMIT)
    image = preprocessor.decode(jpeg("coffee"), Timeline("test"))
    monkeypatch.setattr(gpu, "normalize", full)
    with pytest.raises(Internal, match="on the GPU failed: CUDA out of memory") as raised:
        preprocessor.prepare(image, RECIPE, Timeline("test"))
    assert len(raised.value.message) < 300
    # And the next one is prepared
    monkeypatch.undo()
    assert preprocessor.prepare(image, RECIPE, Timeline("test")).shape == (1, 3, 224, 224)


# --- DALI's own ------------------------------------------------------------------------------------------------------


def unlike(decoded_: np.ndarray, data: bytes) -> str:
    """How pixels differ from OpenCV's of the same JPEG; empty where they do not, but for one level in 1 % of them.

    Measured: not at all, for both decode by libjpeg-turbo. The level is left to its versions.
    """
    expected = decoded(load("opencv", LIMIT, scaled=False), data)
    if decoded_.shape != expected.shape:
        return f"{decoded_.shape} instead of {expected.shape}"
    off = np.abs(decoded_.astype(int) - expected)
    return "" if off.max() <= 1 and (off > 0).mean() < 0.01 else f"{off.max()} levels, {(off > 0).mean():.1%} of values"


def turned(orientation: int) -> bytes:
    image = Image.fromarray(pixels("chelsea"))
    exif = image.getexif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


@pytest.mark.torch
def test_dalis_pixels_are_opencvs() -> None:
    preprocessor = dali_on_cpu(LIMIT)
    rgb = pixels("coffee")
    jpegs = {
        **{name: jpeg(name) for name in ("coffee", "china", "chelsea", "flower")},
        **{f"subsampling {kind}": encode(rgb, subsampling=kind, quality=70) for kind in range(3)},
        **{f"orientation {orientation}": turned(orientation) for orientation in range(1, 9)},
        "progressive": encode(rgb, progressive=True),
        "odd sides": encode(rgb[:301, :407]),
        "a pixel": encode(rgb[:1, :1]),
        "gray": encode(np.asarray(Image.fromarray(rgb).convert("L"))),
    }
    assert {name: unlike(decoded(preprocessor, data), data) for name, data in jpegs.items()} == dict.fromkeys(jpegs, "")
    # CMYK: K is multiplied in with another rounding, one level of 255
    cmyk = encode(Image.fromarray(rgb).convert("CMYK"), quality=98)
    off = np.abs(decoded(preprocessor, cmyk).astype(int) - decoded(load("opencv", LIMIT, scaled=False), cmyk))
    assert off.max() <= 1


@pytest.mark.torch
@pytest.mark.parametrize(
    "wrong",
    [
        lambda image, *a, **k: image(*a, **{**k, "adjust_orientation": True}),
        lambda image, *a, **k: image(*a, **k).torch().flip(2),
        lambda image, *a, **k: image(*a, **k).torch().roll(1, 1),
        lambda image, *a, **k: (image(*a, **k).torch().int() + 1).clamp(0, 255).byte(),
        lambda image, *a, **k: image(*a, **k).torch()[:-1],
        lambda image, *a, **k: image(*a, **{**k, "use_fast_idct": True}),
    ],
    ids=["turned twice", "blue first", "a pixel beside", "a level brighter", "a row less", "a coarser transform"],
)
def test_a_wrong_decode_is_noticed(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any]) -> None:
    preprocessor = dali_on_cpu(LIMIT)
    from services.preprocess import dali

    image = dali.dynamic.decoders.image
    monkeypatch.setattr(dali.dynamic.decoders, "image", lambda *a, **k: wrong(image, *a, **k))
    assert unlike(decoded(preprocessor, turned(6)), turned(6))


@pytest.mark.torch
def test_dali_hands_its_pixels_over_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessor = dali_on_cpu(LIMIT)
    from services.preprocess import dali

    made: list[Any] = []
    image = dali.dynamic.decoders.image
    monkeypatch.setattr(dali.dynamic.decoders, "image", lambda *a, **k: made.append(image(*a, **k)) or made[-1])
    tensor: Any = preprocessor.decode(jpeg("coffee"), Timeline("test")).pixels
    assert tensor.data_ptr() == np.asarray(made[0]).ctypes.data
    # And they are the tensor's to keep, whatever is decoded next
    kept = tensor.clone()
    made.clear()
    for _ in range(8):
        preprocessor.decode(jpeg("china"), Timeline("test"))
    assert (tensor == kept).all()


@pytest.mark.torch
def test_after_an_image_that_dali_cannot_decode_the_next_is_right(caplog: pytest.LogCaptureFixture) -> None:
    preprocessor = dali_on_cpu(LIMIT)
    whole = jpeg("coffee")
    # Given what has a header and an end: cut off within the scan (DALI, as OpenCV, makes the rest up or refuses), and
    # without any tables; and memory that DALI does not get
    no_scan = whole[: whole.rindex(b"\xff\xda") + 2] + b"\xff\xd9"
    no_tables = whole.replace(b"\xff\xdb", b"\xff\xee")
    for damaged in (no_scan, no_tables, whole[: len(whole) // 2] + b"\xff\xd9"):
        try:
            expected = decoded(load("opencv", LIMIT, scaled=False), damaged)
        except UndecodableImage:
            expected = None
        # When it is decoded, over and over; then it is refused, or answered, as by OpenCV
        for _ in range(3):
            if expected is None:
                with pytest.raises(UndecodableImage):
                    preprocessor.decode(damaged, Timeline("test"))
            else:
                assert decoded(preprocessor, damaged).shape == expected.shape
        # And the next one is right, with its ledger, by DALI
        timeline = Timeline("test")
        image = preprocessor.decode(whole, timeline)
        assert [(tile.stage, tile.cpu_ns) for tile in timeline.tiles] == [(Stage.DECODE, UNKNOWN_CPU)]
        assert not unlike(preprocessor.to_host(image, timeline).pixels, whole)
    # And the log says once that DALI refused one
    assert ["a JPEG that DALI does not take" in record.message for record in caplog.records] == [True]


@pytest.mark.torch
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, ValueError])
def test_what_dali_says_of_memory_and_arguments_is_no_end_of_the_image(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    preprocessor = dali_on_cpu(LIMIT)
    from services.preprocess import dali

    def fail(*_: Any, **__: Any) -> Any:
        raise error("no")

    with monkeypatch.context() as patch:
        patch.setattr(dali.dynamic.decoders, "image", fail)
        assert not unlike(decoded(preprocessor, jpeg("coffee")), jpeg("coffee"))
    assert not unlike(decoded(preprocessor, jpeg("coffee")), jpeg("coffee"))


@pytest.mark.torch
def test_threads_decode_at_once_each_with_a_context_of_its_own_that_ends_with_it() -> None:
    preprocessor = dali_on_cpu(LIMIT)
    names = ("coffee", "china", "chelsea", "flower")

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))  # also those that Python does not know

    def many(name: str) -> list[str]:
        together.wait(30)
        return [unlike(decoded(preprocessor, jpeg(name)), jpeg(name)) for _ in range(10)]

    # Given a process in which DALI has begun what all threads share
    decoded(preprocessor, jpeg("coffee"))
    before = threads()
    for _ in range(3):
        # When threads that come and go decode at once
        together = threading.Barrier(len(names))
        with ThreadPoolExecutor(len(names)) as pool:
            answers = list(pool.map(many, names))
        # Then each has its own pixels, and nothing of it stays (the kernel takes a moment to bury a thread)
        assert answers == [[""] * 10] * len(names)
        assert eventually(lambda: threads() <= before, 10)


@pytest.mark.torch
def test_on_a_gpu_dali_is_asked_on_the_lanes_device_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the device; the operator's arguments are those that it takes on the CPU elsewhere here."""
    pytest.importorskip("nvidia.dali", reason="DALI is not here: it is for Linux")
    import torch

    from services.preprocess import dali
    from tests.fake_cuda import FakeCuda, lane

    contexts: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    evaluation = dali.dynamic.EvalContext

    def context(**arguments: Any) -> Any:
        contexts.append(arguments)
        return evaluation(num_threads=1)

    def image(encoded: Any, **arguments: Any) -> Any:
        asked.append({**arguments, "mode": dali.dynamic.EvalMode.current()})
        return torch.zeros(2, 3, 3, dtype=torch.uint8)

    monkeypatch.setattr(dali.dynamic, "EvalContext", context)
    monkeypatch.setattr(dali.dynamic.decoders, "image", image)
    # Given a lane to the second GPU
    way = lane(FakeCuda())
    way.device = torch.device("cuda", 1)
    # When a JPEG is decoded
    decoded_ = dali.decoder(way)(torch.zeros(9, dtype=torch.uint8))
    # Then on that GPU, on the lane's stream, in this thread, as it is stored, tied to no core
    assert contexts == [{"num_threads": 1, "device_id": 1, "cuda_stream": way.stream}]
    [how] = asked
    assert (how["device"], how["adjust_orientation"], how["affine"]) == ("gpu:1", False, False)
    assert how["mode"] is dali.dynamic.EvalMode.sync_cpu
    assert decoded_.shape == (3, 2, 3)
