"""JPEGs decoded by nvJPEG (through torchvision), and resized, cut and normalized on the same GPU.

What has run where: resizing, cutting and normalizing run in tests on torch's CPU device, and equal OpenCV's. The calls
of the decoder have run with a stand-in only; **nothing here has run on a GPU yet**.

* A JPEG's bytes go to the device, its pixels stay there, and the recipe's tensor comes back, because a hop carries
  bytes of the host (`download`). Where a task needs the pixels themselves, `to_host` brings them.
* PNG, WebP, and JPEGs that nvJPEG does not take (CMYK, arithmetic coding, 12 bits) are decoded by OpenCV: their
  `decode` is the CPU's, their pixels are moved up (`upload`), and the log says so once.
* The decoder does not shrink while it decodes, so `--decode scaled` changes nothing for JPEGs here.
* One image at a time: the decoder could take several at once (`decode_jpeg` of a list), but the contract hands out one,
  and a batch of them would have one time for all. Several threads (`--preprocess-instances`) keep the device busy; each
  has a stream of its own. torchvision holds a lock while it decodes.

torchvision 0.29 deprecates its decoders in favour of TorchCodec's. They work, and are used as long as they are there;
where a version has dropped them, the start says so.
"""

from __future__ import annotations

import importlib
import logging
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from services import cuda
from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.messages import Array, Image, Recipe
from services.preprocess import opencv
from services.preprocess.area import area_weights
from services.preprocess.geometry import centre
from services.preprocess.image_header import check_pixels, orientation, read_header

_log = logging.getLogger(__name__)

DEVICE = "cuda"
_WEIGHTS = 64  # matrices that are kept on the device: a camera's images have one size

_SAID = 200  # characters of torch's message: it may hold a stack of C++

# A JPEG's bytes, as a tensor on the host -> its pixels as stored, RGB, uint8 [3, height, width], on the device.
# Called on the lane's stream, by the lane's thread; raises `RuntimeError` for what it does not take.
Decoder = Callable[[Any], Any]


class Decoding(NamedTuple):
    """What decodes JPEGs: its name, for the log, and what makes a decoder for a lane."""

    name: str
    open: Callable[[cuda.Lane], Decoder]


def load(max_pixels: int, *, scaled: bool) -> GpuPreprocessor:
    """On the current CUDA device. Raises `ConfigurationError` where there is none."""
    cuda.require(DEVICE, "--preprocessor opencv")
    try:
        io = importlib.import_module("torchvision.io")
        decode, rgb = io.decode_jpeg, io.ImageReadMode.RGB
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"preprocessor gpu needs a torchvision that decodes JPEGs: {error}; "
            "pip install 'beyond-inference[torch]', or use --preprocessor opencv"
        ) from error
    return GpuPreprocessor(
        opencv.load(max_pixels, scaled=scaled),
        max_pixels,
        Decoding("nvJPEG", lambda _: lambda data: decode(data, mode=rgb, device=DEVICE)),
        lambda: cuda.open_lane(DEVICE),
    )


class _Way(NamedTuple):
    """A thread's own."""

    lane: cuda.Lane
    decode: Decoder


class GpuPreprocessor:
    """Each thread that calls gets a lane and a decoder of its own."""

    def __init__(
        self,
        host: opencv.OpenCvPreprocessor,
        max_pixels: int,
        decoding: Decoding,
        open_lane: Callable[[], cuda.Lane],
    ) -> None:
        """`host`: what decodes where the device cannot."""
        self._host = host
        self._max_pixels = max_pixels
        self._decoding = decoding
        self._open_lane = open_lane
        self._threads = threading.local()
        self._weights = lru_cache(_WEIGHTS)(_weights)
        self._said: set[str] = set()

    def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
        """See `Preprocessor.decode`. The pixels are on the device: a tensor, uint8 [height, width, 3]."""
        header = read_header(data)
        check_pixels(header, self._max_pixels)
        if header.format != "jpeg":
            self._say(f"{header.format} images are decoded on the CPU")
            return self._host.decode(data, timeline, shorter)
        lane, decode = self._way()
        staged = lane.stage("jpeg", np.frombuffer(data, np.uint8))
        try:
            with lane.work():
                pixels = _upright(decode(staged), orientation(data))
                lane.mark(Stage.DECODE)
        except RuntimeError as error:  # what OpenCV then says of it is the caller's; the time until here is decode's
            cause = textwrap.shorten(str(error), _SAID, placeholder=" ...")
            self._say(f"a JPEG that {self._decoding.name} does not take was decoded on the CPU: {cause}")
            return self._host.decode(data, timeline, shorter)
        lane.cut(timeline)
        return Image(pixels.permute(1, 2, 0), pixels.shape[2], pixels.shape[1])

    def to_host(self, image: Image, timeline: Timeline) -> Image:
        """See `Preprocessor.to_host`."""
        pixels: Any = image.pixels
        if isinstance(pixels, np.ndarray):
            return image
        lane = self._way().lane
        with _work(lane):
            landed = lane.download("pixels", pixels)
            lane.mark(Stage.DOWNLOAD)
        mine = np.array(landed.numpy())
        lane.cut(timeline)
        return Image(mine, image.width, image.height)

    def prepare(self, image: Image, recipe: Recipe, timeline: Timeline) -> Array:
        """See `Preprocessor.prepare`; also cuts `upload` where the pixels are the host's, and `download`."""
        lane = self._way().lane
        pixels: Any = image.pixels
        staged = lane.stage("pixels up", pixels) if isinstance(pixels, np.ndarray) else None
        with _work(lane):
            if staged is not None:
                pixels = lane.upload(staged)
                lane.mark(Stage.UPLOAD)
            resized = self._fit(pixels.permute(2, 0, 1), image, recipe)
            lane.mark(Stage.RESIZE)
            tensor = normalize(resized, recipe)
            lane.mark(Stage.NORMALIZE)
            landed = lane.download("tensor", tensor)
            lane.mark(Stage.DOWNLOAD)
        prepared: Array = np.array(landed.numpy())[np.newaxis]
        lane.cut(timeline)
        return prepared

    def _fit(self, pixels: torch.Tensor, image: Image, recipe: Recipe) -> torch.Tensor:
        """uint8 [3, height, width] -> float32 [3, size, size], or what of it a letterbox shows: levels of 0..255."""
        if recipe.fit != "centre":
            columns, rows = recipe.extent(image.width, image.height)
            return self._resize(pixels, rows, columns, recipe)
        window = centre(pixels.shape[1], pixels.shape[2], recipe)
        part = pixels[:, window.top : window.top + window.height, window.left : window.left + window.width]
        resized = self._resize(part, window.target[1], window.target[0], recipe)
        return resized[
            :, window.cut_top : window.cut_top + recipe.size, window.cut_left : window.cut_left + recipe.size
        ]

    def _resize(self, pixels: torch.Tensor, rows: int, columns: int, recipe: Recipe) -> torch.Tensor:
        """float32 [3, rows, columns], whole levels of 0..255 as OpenCV rounds them."""
        height, width = pixels.shape[1:]
        levels = pixels.float()
        if (rows, columns) == (height, width):
            return levels
        if recipe.interpolation == "area" and rows <= height and columns <= width:
            down = self._weights(height, rows, levels.device)
            across = self._weights(width, columns, levels.device)
            resized = torch.matmul(torch.matmul(down, levels), across.T)
        else:
            cubic = recipe.interpolation == "cubic" and columns * rows < width * height
            resized = torch.nn.functional.interpolate(
                levels[None], (rows, columns), mode="bicubic" if cubic else "bilinear", align_corners=False
            )[0]
        return resized.round().clamp(0, 255)

    def _way(self) -> _Way:
        way: _Way | None = getattr(self._threads, "way", None)
        if way is None:
            lane = self._open_lane()
            way = self._threads.way = _Way(lane, self._decoding.open(lane))
        return way

    def _say(self, what: str) -> None:
        """Each kind of thing once: it may be so for every image that comes."""
        kind = what[:20]
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("preprocessing on the GPU: %s", what)


@contextmanager
def _work(lane: cuda.Lane) -> Iterator[None]:
    """`lane.work()`. Raises `Internal` for what the device says, e.g. that its memory is full."""
    try:
        with lane.work():
            yield
    except RuntimeError as error:
        cause = textwrap.shorten(str(error), _SAID, placeholder=" ...")
        raise Internal(f"preprocessing on the GPU failed: {cause}") from error


def _weights(source: int, target: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(area_weights(source, target)).to(device)


def normalize(pixels: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """float32 of 0..255, [3, size, size] or its upper left -> the recipe's type and layout; the rest is the mean."""
    mean = torch.tensor(recipe.mean, dtype=torch.float32, device=pixels.device)[:, None, None]
    if recipe.dtype == "uint8":
        tensor, rest = pixels.to(torch.uint8), mean.round().clamp(0, 255).to(torch.uint8)
    else:
        std = torch.tensor(recipe.std, dtype=torch.float32, device=pixels.device)[:, None, None]
        # In single precision, whatever becomes of it: one rounding more, not two.
        dtype = torch.float16 if recipe.dtype == "float16" else torch.float32
        tensor, rest = ((pixels - mean) / std).to(dtype), torch.zeros_like(mean, dtype=dtype)
    height, width = tensor.shape[1:]
    if (height, width) != (recipe.size, recipe.size):
        whole = rest.repeat(1, recipe.size, recipe.size)
        whole[:, :height, :width] = tensor
        tensor = whole
    return tensor if recipe.layout == "CHW" else tensor.permute(1, 2, 0)


# EXIF orientation -> the axes of [3, height, width] that are swapped, and those that are then reversed.
_UPRIGHT: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}


def _upright(pixels: torch.Tensor, orientation_: int) -> torch.Tensor:
    swapped, reversed_ = _UPRIGHT.get(orientation_, (False, ()))
    if swapped:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(reversed_) if reversed_ else pixels
