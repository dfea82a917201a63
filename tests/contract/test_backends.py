"""One suite over the table of backends: what they compute, whose arrays are whose, the ledger, and what they refuse.

A row that needs torch carries the marker `torch`, and imports it only inside: `-m "not torch"` never does.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from services.accounting import UNKNOWN_CPU, Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.inference import backends
from services.inference.backends.backend import Backend
from services.messages import Array, Recipe, Tensors, TensorSpec
from services.models.catalogue import ModelSpec, load_catalogue
from tests.answers import reference_tensor
from tests.photographs import CLASSES, jpeg

RECIPE = Recipe(224, 256, (127, 127, 127), (128, 128, 128))
LOGITS = (TensorSpec("logits", "float32", (-1, 1000)),)
# Another batch size is another order of additions: this share of the logits' range is what that may change.
ROUNDING = 1e-4
MAX_BATCH = 5


# --- one model, or more, for each row --------------------------------------------------------------------------------


def default_model(folder: Path) -> ModelSpec:
    return load_catalogue()["efficientnet-lite0"]


def law(folder: Path) -> ModelSpec:
    return ModelSpec("law", "classification", RECIPE, LOGITS, law=(4.0, 0.5))


def accelerated(folder: Path) -> ModelSpec:
    return dataclasses.replace(default_model(folder), acceleration=8, record=folder / "record")


def torch_exported(folder: Path) -> ModelSpec:
    """A small network with seeded weights, exported with a dynamic batch dimension."""
    import torch

    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten()
    )
    network.append(torch.nn.Linear(8 * 8 * 8, 1000))
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(network.eval(), (torch.zeros(2, 3, 224, 224),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "small.pt2")
    return ModelSpec("exported", "classification", RECIPE, LOGITS, exported=folder / "small.pt2")


def torch_random(folder: Path) -> ModelSpec:
    return ModelSpec("random", "classification", RECIPE, LOGITS, architecture="mobilenet_v3_small", seed=3)


def torch_weights(folder: Path) -> ModelSpec:
    """A state dict in a local file. Scaled up, because what a random network answers hardly depends on the image."""
    import torch
    import torchvision

    torch.manual_seed(4)
    network = torchvision.models.resnet18(weights=None)
    state = {
        name: value * 3 if name.endswith("conv1.weight") else value for name, value in network.state_dict().items()
    }
    torch.save(state, folder / "resnet18.pth")
    return ModelSpec(
        "weights", "classification", RECIPE, LOGITS, architecture="resnet18", weights=folder / "resnet18.pth"
    )


class Case(NamedTuple):
    """A row with a model. What it may opt out of, each with its reason, is in the comments of `CASES`."""

    backend: str
    build: Callable[[Path], ModelSpec]
    computes: bool = True
    file: str | None = None  # the field of the spec that names its file
    device: str = "cpu"
    package: str = ""  # without which it cannot be imported
    stands_in: bool = False  # for a device: then one that is absent is no reason to refuse

    def reason_to_skip(self, device: str) -> str:
        """Empty where it can run on `device`."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if device == self.device != "cpu":
            import torch

            if torch.cuda.device_count() == 0:
                return "no CUDA device is here"
        return ""


ABSENT = "cuda:99"  # no machine has a hundred


CASES: dict[str, Case] = {
    "onnxruntime": Case("onnxruntime", default_model, file="onnx"),
    # A law stands in for any device, has no file, and answers zeros.
    "emulated": Case("emulated", law, computes=False),
    # Answers what the real model answered, in a time of its own.
    "replay": Case("replay", accelerated, file="onnx", stands_in=True),
    "torch-exported": Case("torch", torch_exported, file="exported"),
    "torch-weights": Case("torch", torch_weights, file="weights"),
    "torch-random": Case("torch", torch_random),  # no file: its weights come from a seed
    # These need a GPU, and are skipped elsewhere.
    "torch-cuda": Case("torch", torch_weights, file="weights", device="cuda"),
    "tensorrt": Case("tensorrt", default_model, file="onnx", device="cuda", package="tensorrt"),
}


def rows(*, computes: bool = False, file: bool = False, device: bool = False) -> list[Any]:
    """The cases that qualify, with their markers."""
    return [
        pytest.param(case, id=name, marks=[pytest.mark.torch] if case.backend in ("torch", "tensorrt") else [])
        for name, case in CASES.items()
        if (case.computes or not computes) and (case.file is not None or not file) and not (case.stands_in and device)
    ]


def test_every_row_of_the_table_is_here() -> None:
    assert {case.backend for case in CASES.values()} == set(backends.TABLE)


class Loaded(NamedTuple):
    case: Case
    spec: ModelSpec
    backend: Backend


@pytest.fixture(scope="module")
def spec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], ModelSpec]:
    made: dict[Callable[[Path], ModelSpec], ModelSpec] = {}

    def build(case: Case) -> ModelSpec:
        if case.build not in made:
            made[case.build] = case.build(tmp_path_factory.mktemp("model"))
        return made[case.build]

    return build


@pytest.fixture(scope="module", params=rows())
def loaded(request: pytest.FixtureRequest, spec_of: Callable[[Case], ModelSpec]) -> Iterator[Loaded]:
    case: Case = request.param
    backend = load(case, spec_of(case), max_batch=MAX_BATCH)
    yield Loaded(case, spec_of(case), backend)
    backend.close()


def load(case: Case, spec: ModelSpec, device: str | None = None, max_batch: int = 1) -> Backend:
    device = case.device if device is None else device
    if reason := case.reason_to_skip(device):
        pytest.skip(reason)
    return backends.load(case.backend, spec, device, 1, max_batch)


@pytest.fixture(scope="module")
def photographs() -> Array:
    """Four real photographs and one of them upside down, [5, 3, 224, 224]."""
    four = [reference_tensor(jpeg(name)) for name in CLASSES]
    batch = np.concatenate([*four, four[0][:, :, ::-1]])
    batch.flags.writeable = False  # whoever writes into its input is caught
    return batch


def run(loaded: Loaded, batch: Array) -> Tensors:
    return loaded.backend.infer(batch, Timeline("test"))


# --- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, MAX_BATCH + 1))
def test_outputs_have_the_names_types_and_shapes_of_the_models_file(
    loaded: Loaded, photographs: Array, size: int
) -> None:
    outputs = run(loaded, photographs[:size])
    assert list(outputs) == [spec.name for spec in loaded.spec.outputs]
    for name, dtype, shape in loaded.spec.outputs:
        assert outputs[name].dtype == np.dtype(dtype)
        assert outputs[name].shape == (size, *shape[1:])
        assert np.isfinite(outputs[name]).all()


def test_a_batch_answers_what_its_members_answer_alone(loaded: Loaded, photographs: Array) -> None:
    # Given each photograph's own answer; a model that computes tells them apart
    singles = np.concatenate([run(loaded, photographs[i : i + 1])["logits"] for i in range(MAX_BATCH)])
    scale = np.ptp(singles) if loaded.case.computes else 1.0
    if loaded.case.computes:
        apart = [np.abs(singles[i] - singles[j]).max() / scale for i in range(MAX_BATCH) for j in range(i)]
        assert min(apart) > 5 * ROUNDING
    # When they come in batches of every size, then the answers are the same, in the same order
    for size in range(2, MAX_BATCH + 1):
        together = run(loaded, photographs[:size])["logits"]
        assert np.abs(together - singles[:size]).max() <= ROUNDING * scale


def test_the_same_input_gives_the_same_answer(loaded: Loaded, photographs: Array) -> None:
    first, second = (run(loaded, photographs[:3])["logits"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


# --- whose the arrays are --------------------------------------------------------------------------------------------


def test_inputs_and_outputs_are_the_callers(loaded: Loaded, photographs: Array) -> None:
    expected = run(loaded, photographs[:2])["logits"].copy()
    mine = photographs[:2].copy()
    outputs = run(loaded, mine)["logits"]
    # Then the input is as it was
    np.testing.assert_array_equal(mine, photographs[:2])
    # And what happens to the input, or to other outputs, later does nothing to these
    mine[...] = 0
    other = run(loaded, photographs[2:4])["logits"]
    other[...] = -1
    np.testing.assert_array_equal(outputs, expected)
    # And what the caller writes into its outputs, no later answer shows
    outputs[...] = np.nan
    np.testing.assert_array_equal(run(loaded, photographs[:2])["logits"], expected)


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_the_timeline_is_cut_and_its_tiles_sum(loaded: Loaded, photographs: Array) -> None:
    timeline = Timeline("inference")
    loaded.backend.infer(photographs[:2], timeline)
    stages = [tile.stage for tile in timeline.tiles]
    # Then infer is there once, between moving in and out where the device has that, and nothing else
    assert stages.count(Stage.INFER) == 1
    order = [Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD]
    assert stages == [stage for stage in order if stage in stages]
    assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns
    assert all(tile.duration_ns > 0 for tile in timeline.tiles)
    infer = timeline.tiles[stages.index(Stage.INFER)]
    if loaded.case.device != "cpu":
        assert len(stages) == 3
        assert infer.cpu_ns == UNKNOWN_CPU
    elif loaded.case.stands_in:
        assert infer.cpu_ns == UNKNOWN_CPU
        assert len(stages) == 1
    elif loaded.case.computes:
        assert infer.cpu_ns > 0  # on the CPU, by one thread: the calling one
    else:
        assert infer.duration_ns >= 5_000_000  # the law: 4 + 0.5 * 2 ms
        assert infer.cpu_ns == UNKNOWN_CPU  # a device computes meanwhile: the thread is not stalled


def test_only_an_emulated_one_says_that_it_is(loaded: Loaded) -> None:
    assert loaded.backend.emulated == (loaded.case.backend in ("emulated", "replay")) == loaded.spec.emulated
    assert loaded.backend.platform
    assert ("emulated" in loaded.backend.platform) == loaded.backend.emulated


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", rows())
def test_a_closed_backend_says_so(case: Case, spec_of: Callable[[Case], ModelSpec], photographs: Array) -> None:
    backend = load(case, spec_of(case))
    backend.close()
    backend.close()
    with pytest.raises(Internal, match="closed"):
        backend.infer(photographs[:1], Timeline("test"))


@pytest.mark.parametrize("case", rows())
@pytest.mark.parametrize("device", ["tpu", "gpu0", "cuda:", "cuda:x", "", "CPU"])
def test_an_unknown_device_is_refused_with_the_known_ones(
    case: Case, spec_of: Callable[[Case], ModelSpec], device: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"'{device}'; use cpu, cuda or cuda:N"):
        load(case, spec_of(case), device)


@pytest.mark.parametrize("case", rows(computes=True, device=True))
def test_an_absent_device_is_refused_with_the_remedy(case: Case, spec_of: Callable[[Case], ModelSpec]) -> None:
    with pytest.raises(ConfigurationError, match=rf"'{ABSENT}' was asked for.*(check|install).*--device cpu"):
        load(case, spec_of(case), ABSENT)


@pytest.mark.parametrize("case", rows(file=True))
def test_a_missing_file_is_refused(case: Case, spec_of: Callable[[Case], ModelSpec], tmp_path: Path) -> None:
    assert case.file is not None
    spec = dataclasses.replace(spec_of(case), **{case.file: tmp_path / "absent.pt2"})
    with pytest.raises(ConfigurationError, match=rf"model '{spec.name}'.*absent\.pt2 is not there; .*(make|correct)"):
        load(case, spec)


@pytest.mark.parametrize("case", rows(file=True))
@pytest.mark.parametrize("content", [b"", b"this is no model\n" * 100])
def test_a_damaged_file_is_refused(
    case: Case, spec_of: Callable[[Case], ModelSpec], tmp_path: Path, content: bytes
) -> None:
    assert case.file is not None
    file = tmp_path / "damaged.pt2"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"damaged\.pt2 cannot be loaded.*; is it .*whole"):
        load(case, dataclasses.replace(spec_of(case), **{case.file: file}))


@pytest.mark.parametrize("case", rows())
def test_a_model_for_another_backend_is_refused(case: Case) -> None:
    without = ModelSpec("other", "classification", RECIPE, LOGITS)
    with pytest.raises(ConfigurationError, match=r"model 'other' has n.*models file.*--backend"):
        load(case, without)


@pytest.mark.parametrize("case", rows(computes=True))
@pytest.mark.parametrize(
    ("output", "says"),
    [
        (TensorSpec("logits", "float32", (-1, 1001)), r"1001"),
        (TensorSpec("logits", "int64", (-1, 1000)), r"int64"),
        (TensorSpec("logits", "float32", (-1, 1000, 1)), r"1000, 1"),
    ],
)
def test_a_models_file_that_is_wrong_about_the_outputs_is_found_at_start(
    case: Case, spec_of: Callable[[Case], ModelSpec], output: TensorSpec, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"answers a batch of 1 with .*\[1, 1000\].*{says}"):
        load(case, dataclasses.replace(spec_of(case), outputs=(output,)))


@pytest.mark.parametrize("case", rows(computes=True))
def test_a_model_that_cannot_read_its_input_is_found_at_start(case: Case, spec_of: Callable[[Case], ModelSpec]) -> None:
    recipe = dataclasses.replace(RECIPE, layout="HWC")
    with pytest.raises(ConfigurationError, match=r"does not run on float32 \[1, 224, 224, 3\], which its recipe"):
        load(case, dataclasses.replace(spec_of(case), recipe=recipe))


@pytest.mark.parametrize("case", rows(computes=True))
def test_a_wrong_input_is_internal(case: Case, spec_of: Callable[[Case], ModelSpec]) -> None:
    backend = load(case, spec_of(case))
    with pytest.raises(Internal, match="failed"):
        backend.infer(np.zeros((1, 5, 224, 224), np.float32), Timeline("test"))
    backend.close()


@pytest.mark.parametrize("name", ["onnxruntime", "emulated"])
def test_a_precision_that_a_backend_does_not_have_is_refused(name: str) -> None:
    spec = dataclasses.replace(load_catalogue()["efficientnet-lite0"], law=(1, 1))
    with pytest.raises(ConfigurationError, match=rf"{name} computes in float32.*not in 'float16'; use --precision"):
        backends.load(name, spec, "cpu", 1, precision="float16")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'tpu'; use one of onnxruntime, torch, tensorrt, emulated"):
        backends.load("tpu", law(Path()), "cpu", 1)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "tensorrt"])
def test_a_backend_whose_package_is_absent_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, backends.TABLE[name], raising=False)
    with pytest.raises(ConfigurationError, match=rf"pip install 'beyond-inference\[{name}\]'"):
        backends.load(name, law(Path()), "cpu", 1)


def test_the_default_backend_reads_the_models_source() -> None:
    catalogue = load_catalogue()
    assert backends.default_for(catalogue["efficientnet-lite0"]) == "onnxruntime"
    assert backends.default_for(catalogue["emulated"]) == "emulated"
    assert backends.default_for(catalogue["resnet50"]) == "torch"
    assert backends.default_for(dataclasses.replace(catalogue["resnet50"], acceleration=2)) == "replay"


# --- the law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("law_", "size", "ms"), [((0.0, 0.0), 8, 0.0), ((3.0, 0.0), 8, 3.0), ((1.0, 2.0), 3, 7.0)])
def test_a_law_takes_a_plus_b_times_the_batch(law_: tuple[float, float], size: int, ms: float) -> None:
    backend = backends.load("emulated", dataclasses.replace(law(Path()), law=law_), "cpu", 1)
    best = min(self_timed(backend, size) for _ in range(5))
    # Then no run is shorter, and the quickest of five is hardly longer
    assert ms <= best / 1e6 < ms + 3


def self_timed(backend: Backend, size: int) -> int:
    timeline = Timeline("test")
    backend.infer(np.zeros((size, *RECIPE.shape), np.float32), timeline)
    return timeline.total_ns


# --- torch's own -----------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_a_random_network_is_said_loudly_and_comes_from_its_seed(
    caplog: pytest.LogCaptureFixture, photographs: Array, tmp_path: Path
) -> None:
    spec = torch_random(tmp_path)
    assert spec.timing_only
    with caplog.at_level(logging.WARNING):
        first = backends.load("torch", spec, "cpu", 1)
    assert "model 'random' has no weights" in caplog.text
    assert "seed 3. FOR TIMING ONLY" in caplog.text
    # Then the seed is the network, also where instances load at the same time
    start = threading.Barrier(2)

    def answer(seed: int) -> Array:
        start.wait(30)
        backend = backends.load("torch", dataclasses.replace(spec, seed=seed), "cpu", 1)
        return backend.infer(photographs[:1], Timeline("test"))["logits"]

    expected = first.infer(photographs[:1], Timeline("test"))["logits"]
    with ThreadPoolExecutor(2) as pool:
        same, again = pool.map(answer, (3, 3))
        other, _ = pool.map(answer, (4, 3))
    np.testing.assert_array_equal(same, expected)
    np.testing.assert_array_equal(again, expected)
    assert np.abs(other - expected).max() > 0


@pytest.mark.torch
def test_local_weights_are_what_answers(caplog: pytest.LogCaptureFixture, photographs: Array, tmp_path: Path) -> None:
    import torch
    import torchvision

    spec = torch_weights(tmp_path)
    assert not spec.timing_only
    with caplog.at_level(logging.WARNING):
        backend = backends.load("torch", spec, "cpu", 1)
    assert not caplog.records
    network = torchvision.models.resnet18(weights=None)
    network.load_state_dict(torch.load(tmp_path / "resnet18.pth", weights_only=True))
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(photographs[:2].copy())).numpy()
    np.testing.assert_allclose(
        backend.infer(photographs[:2], Timeline("test"))["logits"], expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.torch
def test_weights_of_another_network_or_an_unknown_one_are_refused(tmp_path: Path) -> None:
    spec = torch_weights(tmp_path)
    with pytest.raises(ConfigurationError, match=r"resnet18\.pth cannot be loaded.*Missing key") as raised:
        backends.load("torch", dataclasses.replace(spec, architecture="resnet50"), "cpu", 1)
    assert len(raised.value.message) < 600  # torch names each of hundreds of weights
    with pytest.raises(ConfigurationError, match="torchvision has no 'resnet51'; use resnet50"):
        backends.load("torch", dataclasses.replace(spec, architecture="resnet51"), "cpu", 1)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.torch
def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    file, victim = tmp_path / "evil.pth", tmp_path / "victim"
    file.write_bytes(pickle.dumps({"conv1.weight": Malicious(victim)}))
    spec = ModelSpec("evil", "classification", RECIPE, LOGITS, architecture="resnet18", weights=file)
    with pytest.raises(ConfigurationError, match=r"evil\.pth cannot be loaded"):
        backends.load("torch", spec, "cpu", 1)
    assert not victim.exists()


@pytest.mark.torch
def test_a_network_that_answers_by_name_is_read_by_name(tmp_path: Path) -> None:
    # Given a segmentation network, which answers a dictionary
    recipe = Recipe(64, 64, (127, 127, 127), (128, 128, 128))
    outputs = (TensorSpec("mask", "uint8", (-1, 64, 64)),)
    spec = ModelSpec("segments", "segmentation", recipe, outputs, architecture="lraspp_mobilenet_v3_large")
    backend = backends.load("torch", spec, "cpu", 1, 2)
    answer = backend.infer(np.zeros((2, 3, 64, 64), np.float32), Timeline("test"))
    assert {name: value.shape for name, value in answer.items()} == {"mask": (2, 64, 64)}
    with pytest.raises(ConfigurationError, match=r"answers a batch of 1 with \{\}; the models file says logits"):
        backends.load("torch", dataclasses.replace(spec, outputs=LOGITS), "cpu", 1)


@pytest.mark.torch
def test_a_batch_size_that_was_fixed_at_export_is_found_at_start(tmp_path: Path) -> None:
    import torch

    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000))
    program = torch.export.export(network.eval(), (torch.zeros(1, 3, 224, 224),))
    torch.export.save(program, tmp_path / "one.pt2")
    spec = ModelSpec("one", "classification", RECIPE, LOGITS, exported=tmp_path / "one.pt2")
    backends.load("torch", spec, "cpu", 1, 1).close()
    with pytest.raises(ConfigurationError, match=r"--max-batch 4 .*dynamic batch dimension"):
        backends.load("torch", spec, "cpu", 1, 4)
