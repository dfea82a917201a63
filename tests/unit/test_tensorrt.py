"""The TensorRT backend with a stand-in for the library and for the GPU: what it asks for, keeps, and refuses.

Where both are real, tests/contract/test_backends.py has the row.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.inference import backends
from services.messages import Recipe, TensorSpec
from services.models.catalogue import ModelSpec
from tests.fake_cuda import FakeCuda, lane
from tests.fake_tensorrt import GOOD, NEVER_COMPILES, State, library

pytestmark = pytest.mark.torch

MODULE = "services.inference.backends.tensorrt"
LOGITS = (TensorSpec("logits", "float32", (-1, 3)),)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A machine with TensorRT and one GPU."""
    from services import cuda

    state = State()
    monkeypatch.setitem(sys.modules, "tensorrt", library(state))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(cuda, "require", lambda device: None)
    monkeypatch.setattr(cuda, "describe", lambda device: cuda.Gpu("NVIDIA H100", "9.0", "13.2"))
    monkeypatch.setattr(cuda, "open_lane", lambda device: lane(FakeCuda()))
    yield state
    sys.modules.pop(MODULE, None)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    (tmp_path / "net.onnx").write_bytes(GOOD)
    recipe = Recipe(8, 8, (0, 0, 0), (1, 1, 1))
    return ModelSpec("net", "classification", recipe, LOGITS, onnx=tmp_path / "net.onnx")


def load(spec: ModelSpec, folder: Path, device: str = "cuda", **more: Any) -> Any:
    return backends.load("tensorrt", spec, device, 1, 4, engine_cache=str(folder / "engines"), **more)


def test_a_batch_is_computed_where_the_lane_puts_it(state: State, spec: ModelSpec, tmp_path: Path) -> None:
    backend = load(spec, tmp_path)
    for size in (1, 3, 4):
        values = np.random.default_rng(size).normal(size=(size, 3, 8, 8)).astype(np.float32)
        timeline = Timeline("inference")
        outputs = backend.infer(values, timeline)
        # Then the outputs of the models file are there, and only those
        assert list(outputs) == ["logits"]
        np.testing.assert_allclose(outputs["logits"], values.mean((2, 3)), rtol=1e-5, atol=1e-6)
        assert [tile.stage for tile in timeline.tiles] == [Stage.UPLOAD, Stage.INFER, Stage.DOWNLOAD]
        assert sum(tile.duration_ns for tile in timeline.tiles) == timeline.total_ns
    # And what the profile has no room for is refused
    with pytest.raises(Internal, match=r"no room for \[5, 3, 8, 8\]"):
        backend.infer(np.zeros((5, 3, 8, 8), np.float32), Timeline("test"))
    with pytest.raises(Internal, match="takes float32, not float64"):
        backend.infer(np.zeros((1, 3, 8, 8)), Timeline("test"))
    backend.close()
    backend.close()
    with pytest.raises(Internal, match="closed"):
        backend.infer(np.zeros((1, 3, 8, 8), np.float32), Timeline("test"))


@pytest.mark.parametrize(
    ("precision", "flags"),
    [("float32", []), ("tf32", ["TF32"]), ("float16", ["FP16", "TF32"]), ("bfloat16", ["BF16", "TF32"])],
)
def test_what_an_engine_is_compiled_for(
    state: State, spec: ModelSpec, tmp_path: Path, precision: str, flags: list[str]
) -> None:
    load(spec, tmp_path, precision=precision, workspace_mib=512)
    [file] = (tmp_path / "engines").glob("net-*.engine")
    facts = json.loads(file.read_bytes()[file.read_bytes().index(b'{"shapes"') :])
    assert facts == {
        "shapes": {"images": [[1, 3, 8, 8], [4, 3, 8, 8], [4, 3, 8, 8]]},
        "flags": flags,
        "workspace": 512 << 20,
    }


def test_an_engine_is_compiled_once_and_again_for_another_model(state: State, spec: ModelSpec, tmp_path: Path) -> None:
    load(spec, tmp_path)
    load(spec, tmp_path)
    assert state.done == ["build", "deserialize", "deserialize"]
    load(spec, tmp_path, precision="float16")
    assert spec.onnx is not None
    spec.onnx.write_bytes(b"another good model")
    load(spec, tmp_path)
    assert state.done.count("build") == 3


def test_a_damaged_engine_is_compiled_anew(
    state: State, spec: ModelSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(spec, tmp_path)
    [file] = (tmp_path / "engines").glob("*.engine")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with caplog.at_level(logging.WARNING):
        load(spec, tmp_path)
    assert "is damaged" in caplog.text
    assert state.done.count("build") == 2
    assert file.read_bytes() == whole


def test_an_engine_that_the_library_refuses_is_compiled_anew(
    state: State, spec: ModelSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(spec, tmp_path)
    state.done.clear()
    state.refuses = True
    with caplog.at_level(logging.WARNING):
        load(spec, tmp_path)
    assert "does not suit this TensorRT or this GPU" in caplog.text
    assert state.done == ["build", "deserialize"]


def test_what_cannot_be_compiled_says_why(
    state: State, spec: ModelSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert spec.onnx is not None
    spec.onnx.write_bytes(b"this is text")
    with pytest.raises(ConfigurationError, match=r"net\.onnx cannot be loaded by TensorRT: no ONNX; is it a whole"):
        load(spec, tmp_path)
    spec.onnx.write_bytes(NEVER_COMPILES)
    with caplog.at_level(logging.ERROR), pytest.raises(ConfigurationError, match=r"cannot compile .*--workspace-mib"):
        load(spec, tmp_path)
    assert "TensorRT: no kernel" in caplog.text
    spec.onnx.write_bytes(GOOD)
    state.declared = (1, 3, 8, 8)
    with pytest.raises(ConfigurationError, match=r"export it with a dynamic batch dimension"):
        load(spec, tmp_path)
    spec.onnx.unlink()
    with pytest.raises(ConfigurationError, match=r"net\.onnx is not there"):
        load(spec, tmp_path)


def test_a_cpu_and_another_version_are_refused(state: State, spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"NVIDIA's GPUs only; use --device cuda, or another --backend"):
        load(spec, tmp_path, device="cpu")
    sys.modules.pop(MODULE)
    sys.modules["tensorrt"] = library(state, "11.4.0.106")
    with pytest.raises(ConfigurationError, match=r"TensorRT 10, this is 11\.4\.0\.106; pip install 'tensorrt>=10,<11'"):
        load(spec, tmp_path)


def test_a_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch, spec: ModelSpec, tmp_path: Path) -> None:
    # Given the library, and the real torch, which sees no such device
    monkeypatch.setitem(sys.modules, "tensorrt", library(State()))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ConfigurationError, match=r"'cuda:99' was asked for.*nvidia-smi.*--device cpu"):
        load(spec, tmp_path, device="cuda:99")
    sys.modules.pop(MODULE, None)


def test_a_library_that_cannot_be_loaded_is_one_error(
    monkeypatch: pytest.MonkeyPatch, spec: ModelSpec, tmp_path: Path
) -> None:
    def broken(name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ConfigurationError, match=r"'tensorrt' cannot be used here: libnvinfer\.so\.10"):
        load(spec, tmp_path)
