"""What torch itself says: the references of segmentation, detection and depth, without the suite's code in between.

An image is decoded by Pillow, resized by exact area averaging in numpy, and goes into torchvision's own model with
torchvision's own postprocessing. Only the random weights are the suite's: torchvision cannot calibrate BatchNorm.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image, ImageOps

from services.models.catalogue import ModelSpec
from services.models.networks import DepthNet, Detector, Segmenter, build
from services.models.seeded import ARCHITECTURES
from tests.answers import averaging

Array = NDArray[Any]


def upright(data: bytes) -> NDArray[np.float64]:
    """float64 [height, width, 3], 0..255, RGB, after its EXIF rotation."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), np.float64)


def stretched(data: bytes, spec: ModelSpec) -> Any:
    """The whole image as the network's input: float32 [1, 3, size, size], normalized."""
    rgb = upright(data)
    size = spec.recipe.size
    rows, columns = averaging(rgb.shape[0], size), averaging(rgb.shape[1], size)
    small = np.einsum("yh,hwc,xw->cyx", rows, rgb, columns, optimize=True)
    mean, std = (np.array(x)[:, None, None] for x in (spec.recipe.mean, spec.recipe.std))
    return torch.from_numpy(((small - mean) / std)[None].astype(np.float32))


def network_of(spec: ModelSpec) -> Any:
    """The suite's network with its weights: the seeded one."""
    return build(ARCHITECTURES[spec.name], spec.recipe.size, seed=0)


def class_scores(data: bytes, spec: ModelSpec, network: Segmenter) -> Array:
    """float32 [classes, height, width] of the original: torchvision's logits, each pixel that of its centre."""
    height, width = upright(data).shape[:2]
    with torch.inference_mode():
        logits = network.network(stretched(data, spec))["out"]
        whole = torch.nn.functional.interpolate(logits, (height, width), mode="nearest-exact")
    scores: Array = whole[0].numpy()
    return scores


def detections(data: bytes, spec: ModelSpec, network: Detector, most: int) -> dict[str, Array]:
    """torchvision's SSD, whole: its softmax, its decoding, its threshold, its suppression."""
    ssd: Any = torchvision.models.get_model(
        ARCHITECTURES[spec.name], weights=None, weights_backbone=None, score_thresh=spec.threshold,
        detections_per_img=most,
    ).eval()  # fmt: skip
    ssd.backbone.load_state_dict(network.backbone.state_dict())
    ssd.head.load_state_dict(network.head.state_dict())
    height, width = upright(data).shape[:2]
    with torch.inference_mode():
        # It normalizes itself, and resizes what is not of its size already.
        (found,) = ssd([stretched(data, spec)[0] * 0.5 + 0.5])
    scale = np.array([width, height, width, height]) / spec.recipe.size
    return {
        "boxes": found["boxes"].numpy() * scale,
        "scores": found["scores"].numpy(),
        "classes": found["labels"].numpy(),
    }


def depths(data: bytes, spec: ModelSpec, network: DepthNet) -> Array:
    """float32 [height, width] of the original, by torch's bilinear interpolation."""
    height, width = upright(data).shape[:2]
    with torch.inference_mode():
        depth = network(stretched(data, spec))["depth"][:, None]
        whole = torch.nn.functional.interpolate(depth, (height, width), mode="bilinear", align_corners=False)
    values: Array = whole[0, 0].numpy()
    return values
