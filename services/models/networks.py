"""Networks in torch, by name: torchvision's constructors and a few of our own, with the outputs that tasks read.

What belongs to the network and what to a task's interpretation (docs/adr/0008): all that has a fixed shape and no
branches is here, and runs where the network runs; what depends on how much was found is the task's.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from services.errors import ConfigurationError

_log = logging.getLogger(__name__)

CANDIDATES = 1000  # of a detector that cross the hop: 28 kB, where all of SSDlite's are 1.2 MB
EMBEDDING = 128  # numbers that a face is
_CALIBRATING = 16  # images
_SPREAD = 2.0  # standard deviation of a random detector's class scores before softmax: its likeliest are above 0.3


def build(architecture: str, size: int, *, weights: Path | None = None, seed: int = 0, name: str = "") -> nn.Module:
    """The network `architecture` for float32 [N, 3, size, size], in evaluation mode.

    `weights`: its state dict; without one it is random, from `seed`, with BatchNorm calibrated, which is said loudly.
    `name`: what it is called in messages. Raises `ConfigurationError` for an unknown one, and what torch raises for
    weights that don't fit.
    """
    torch.manual_seed(seed)
    network: nn.Module = _OWN[architecture]() if architecture in _OWN else _torchvision(architecture, name)
    if weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval()
    if weights is None:
        _log.warning(
            "model '%s' has no weights: a random network from seed %d. FOR TIMING ONLY, its answers mean nothing",
            name or architecture,
            seed,
        )
    whole = _with_head(network, size)
    if weights is None:
        calibrate(whole, size, seed)
        if isinstance(whole, Detector):
            whole.spread(_like_photographs(_CALIBRATING, size, seed))
    return whole


def _torchvision(architecture: str, name: str) -> nn.Module:
    models = torchvision.models
    if architecture not in models.list_models():
        known = [*models.list_models(), *_OWN]
        close = difflib.get_close_matches(architecture, known)
        raise ConfigurationError(
            f"model '{name or architecture}': torchvision has no '{architecture}'; "
            f"{'use ' + ' or '.join(close) if close else 'torchvision.models.list_models() says what it has'}"
        )
    try:
        network: nn.Module = models.get_model(architecture, weights=None, weights_backbone=None)
    except TypeError:  # classifiers have no backbone to speak of
        network = models.get_model(architecture, weights=None)
    return network


def _with_head(network: nn.Module, size: int) -> nn.Module:
    if isinstance(network, torchvision.models.detection.ssd.SSD):
        return Detector(network, size).eval()
    if isinstance(network, torchvision.models.detection.generalized_rcnn.GeneralizedRCNN):
        raise ConfigurationError(
            f"{type(network).__name__} finds things in two stages, which are not told apart here; use an SSD "
            "(ssdlite320_mobilenet_v3_large), or export the network to ONNX with the outputs of task detection"
        )
    segments = torchvision.models.segmentation
    if isinstance(network, (segments.lraspp.LRASPP, segments.deeplabv3.DeepLabV3, segments.fcn.FCN)):
        return Segmenter(network).eval()
    return network


def calibrate(network: nn.Module, size: int, seed: int = 0) -> None:
    """Set every BatchNorm's statistics to what it sees on images with a photograph's spectrum; from `seed`.

    A random network whose BatchNorm divides by 1 shrinks what it sees from layer to layer, and answers the same to
    every image.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
        norm.train()
    with torch.no_grad():
        network(_like_photographs(_CALIBRATING, size, seed))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _like_photographs(count: int, size: int, seed: int) -> Tensor:
    """float32 [count, 3, size, size] of mean 0 and deviation 1: amplitudes fall as 1/f, as in natural images.

    Field 1987, "Relations between the statistics of natural images and the response properties of cortical cells".
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.fft.rfft2(torch.randn(count, 3, size, size, generator=generator))
    down, across = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    images = torch.fft.irfft2(noise / (down**2 + across**2).sqrt().clamp(min=1 / size), s=(size, size))
    # Channels of a photograph are much alike.
    images = 0.9 * images.mean(dim=1, keepdim=True) * 3**0.5 + 0.3 * images
    return (images - images.mean()) / images.std()


class Segmenter(nn.Module):  # type: ignore[misc] # torch may be absent where types are checked
    """torchvision's segmentation networks -> `mask` uint8 [N, H, W]: the likeliest class of each pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images`: float32 [N, 3, H, W]."""
        return {"mask": self.network(images)["out"].argmax(1).to(torch.uint8)}


class Detector(nn.Module):  # type: ignore[misc] # as above
    """torchvision's SSDs without their preprocessing and suppression -> the best candidates, decoded.

    `boxes` float32 [N, K, 4] in shares of the input's side, `scores` float32 [N, K], descending, `classes` int64
    [N, K] as torchvision counts them (0 is the background, and never answered); K is `CANDIDATES` or all there are.

    Greedy suppression looks at candidates in the order of their scores, so the best K give the same answers as all do,
    until K are not enough for the most that a task reports.
    """

    def __init__(self, ssd: Any, size: int) -> None:
        super().__init__()
        self.backbone, self.head = ssd.backbone, ssd.head
        wx, wy, ww, wh = ssd.box_coder.weights
        self.register_buffer("places", torch.tensor([wx, wy]), persistent=False)
        self.register_buffer("stretches", torch.tensor([ww, wh]), persistent=False)
        self.longest = float(ssd.box_coder.bbox_xform_clip)
        blank = torch.zeros(1, 3, size, size)
        with torch.no_grad():
            features = list(self.backbone(blank).values())
        images = torchvision.models.detection.image_list.ImageList(blank, [(size, size)])
        (anchors,) = ssd.anchor_generator(images, features)
        sides = anchors[:, 2:] - anchors[:, :2]
        # Centres and sides, in shares of the input's side
        self.register_buffer("centres", (anchors[:, :2] + sides / 2) / size, persistent=False)
        self.register_buffer("sides", sides / size, persistent=False)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def spread(self, images: Tensor) -> None:
        """Scale the last layers of a random network's classes: else it finds all things equally likely everywhere."""
        logits = self.head(list(self.backbone(images).values()))["cls_logits"]
        for layers in self.head.classification_head.module_list:
            last = layers[-1] if isinstance(layers, nn.Sequential) else layers
            last.weight *= _SPREAD / logits.std()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images`: float32 [N, 3, size, size]."""
        found = self.head(list(self.backbone(images).values()))
        scores = found["cls_logits"].softmax(-1)[:, :, 1:]
        classes = scores.shape[2]
        flat = scores.flatten(1)
        best, chosen = flat.topk(min(CANDIDATES, scores.shape[1] * classes), dim=1)
        anchors = chosen // classes
        shifts = found["bbox_regression"].gather(1, anchors[:, :, None].expand(-1, -1, 4))
        centres, sides = self.centres[anchors], self.sides[anchors]
        middle = shifts[:, :, :2] / self.places * sides + centres
        half = (shifts[:, :, 2:] / self.stretches).clamp(max=self.longest).exp() * sides / 2
        boxes = torch.cat([middle - half, middle + half], dim=2).clamp(0, 1)
        return {"boxes": boxes, "scores": best, "classes": chosen % classes + 1}


class _Step(nn.Module):  # type: ignore[misc] # as above
    """Twice the resolution: upsample, add what the encoder saw there, mix depthwise and pointwise."""

    def __init__(self, channels: int, beside: int, out: int) -> None:
        super().__init__()
        self.beside = nn.Conv2d(beside, channels, 1, bias=False)
        self.mix = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.mix(x + self.beside(skip))


class DepthNet(nn.Module):  # type: ignore[misc] # as above
    """A compact encoder-decoder -> `depth` float32 [N, H/2, W/2], above 0; H and W are multiples of 32.

    MobileNetV3-small with a light decoder and additive skips, after FastDepth (Wofk et al. 2019, arXiv 1903.03273).
    """

    # Blocks of MobileNetV3-small whose output is the last of its resolution: 1/2, 1/4, 1/8, 1/16, and the end, 1/32.
    _ENDS = (0, 1, 3, 8)
    _WIDTHS = (16, 16, 24, 48)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torchvision.models.mobilenet_v3_small(weights=None).features
        channels = (256, 128, 64, 32)
        self.reduce = nn.Conv2d(576, channels[0], 1, bias=False)
        self.steps = nn.ModuleList(
            _Step(width, beside, out)
            for width, beside, out in zip(channels, reversed(self._WIDTHS), (*channels[1:], 16), strict=True)
        )
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images`: float32 [N, 3, H, W]."""
        skips = []
        x = images
        for index, block in enumerate(self.encoder):
            x = block(x)
            if index in self._ENDS:
                skips.append(x)
        x = self.reduce(x)
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = step(x, skip)
        return {"depth": functional.softplus(self.out(x)).squeeze(1)}


class Embedder(nn.Module):  # type: ignore[misc] # as above
    """MobileNetV3-small -> `embeddings` float32 [N, 128] of length 1: what one face is like."""

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision.models.mobilenet_v3_small(weights=None)
        self.features, self.pool = trunk.features, trunk.avgpool
        self.project = nn.Linear(576, EMBEDDING, bias=False)
        self.norm = nn.BatchNorm1d(EMBEDDING)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`images`: float32 [N, 3, H, W]."""
        x = self.norm(self.project(self.pool(self.features(images)).flatten(1)))
        return {"embeddings": functional.normalize(x)}


_OWN: Mapping[str, Callable[[], nn.Module]] = {
    "depth_mobilenet_v3_small": DepthNet,
    "embed_mobilenet_v3_small": Embedder,
}
