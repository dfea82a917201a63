"""What tests of faces share: photographs with known faces, a small identifier, and a models file with both networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from services.models.catalogue import DEFAULT
from tests.photographs import Pixels, pixels

MTCNN = DEFAULT.parents[2] / "models" / "mtcnn.onnx"
# Eileen Collins's face in skimage's `astronaut`, left, top, right, bottom: by eye, from the hairline to the chin.
ASTRONAUT = (178, 65, 268, 172)
# Grace Hopper's in matplotlib's `grace_hopper.jpg`
HOPPER = (175, 125, 365, 335)

MODELS = """
[mtcnn]
task = "faces"
onnx = "{mtcnn}"
recipe = {{ size = 640, fit = "letterbox", mean = [127.5, 127.5, 127.5], std = [128, 128, 128] }}
[mtcnn.outputs]
boxes = {{ dtype = "float32", shape = [-1, 128, 4] }}
scores = {{ dtype = "float32", shape = [-1, 128] }}

[looks]
task = "identification"
onnx = "looks.onnx"
threshold = 0.9
recipe = {{ size = 112, fit = "stretch", mean = [127.5, 127.5, 127.5], std = [127.5, 127.5, 127.5] }}
outputs = {{ embeddings = {{ dtype = "float32", shape = [-1, 147] }} }}
"""


def models_file(folder: Path) -> Path:
    """The real detector, and an identifier by the looks of a face: 7 x 7 mean colours."""
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["images"], ["small"], kernel_shape=[16, 16], strides=[16, 16]),
            helper.make_node("Flatten", ["small"], ["embeddings"], axis=1),
        ],
        "looks",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", 147])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "looks.onnx")
    file = folder / "models.toml"
    file.write_text(MODELS.format(mtcnn=MTCNN))
    return file


def head() -> Pixels:
    """uint8 [180, 160, 3]: the astronaut's."""
    return pixels("astronaut")[20:200, 142:302]


def crowd(across: int, down: int) -> Pixels:
    """A frame full of that head."""
    return np.tile(head(), (down, across, 1))


def overlap(a: NDArray[np.floating] | tuple[float, ...], b: NDArray[np.floating] | tuple[float, ...]) -> float:
    """Intersection over union."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    common = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None).prod()
    areas = sum((box[2:] - box[:2]).prod() for box in (first, second))
    return float(common / (areas - common))
