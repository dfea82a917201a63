"""An accelerator k times as fast: what it sleeps, what it answers, what it does with what is not recorded."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.accounting import UNKNOWN_CPU, Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.inference import backends
from services.inference.backends import replay
from services.inference.backends.backend import Placement
from services.inference.backends.recording import Recording, Times, digest
from services.inference.backends.replay import ReplayBackend
from services.messages import Array, Recipe, Tensors, TensorSpec
from services.models.catalogue import ModelSpec

RECIPE = Recipe(4, 4, (127, 127, 127), (128, 128, 128))
TIMES = Times("model", "test on cpu", "test", {1: 8.0, 2: 12.0, 4: 24.0, 6: 40.0})


class Clock:
    """Nanoseconds; sleeping moves it, and so does whoever computes."""

    def __init__(self) -> None:
        self.ns = 5_000_000_000
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.ns += round(seconds * 1e9)


class Sums:
    """A real model: the sum of each channel, in a given time."""

    platform = "sums"
    emulated = False

    def __init__(self, clock: Clock | None = None, ns: int = 0) -> None:
        self._clock, self._ns = clock, ns
        self.batches: list[int] = []
        self.loads: list[tuple[Any, ...]] = []
        self.closed = False

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        self.batches.append(len(batch))
        timeline.cut(Stage.UPLOAD)
        if self._clock is not None:
            self._clock.ns += self._ns
        timeline.cut(Stage.INFER)
        return {"sums": batch.sum((2, 3)), "rows": np.arange(len(batch))}

    def close(self) -> None:
        self.closed = True


def images(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(count, *RECIPE.shape)).astype(np.float32)


def backend(folder: Path, clock: Clock, k: float = 4, real: Sums | None = None) -> ReplayBackend:
    return ReplayBackend(TIMES, k, Recording(folder), real, clock=clock, sleep=clock.sleep)


def took(replayed: ReplayBackend, clock: Clock, batch: Array) -> tuple[Tensors, Timeline]:
    timeline = Timeline("inference", clock=clock)
    return replayed.infer(batch, timeline), timeline


@pytest.mark.parametrize("k", [1, 4, 32])
@pytest.mark.parametrize(("size", "ms"), [(1, 8.0), (2, 12.0), (3, 18.0), (4, 24.0), (5, 32.0), (6, 40.0)])
def test_a_batch_takes_its_measured_time_divided_by_k(tmp_path: Path, k: float, size: int, ms: float) -> None:
    # Given a recording of these images
    clock = Clock()
    batch = images(size)
    backend(tmp_path, Clock(), real=Sums()).infer(batch, Timeline("record"))
    # When they are replayed
    outputs, timeline = took(backend(tmp_path, clock, k), clock, batch)
    # Then infer is all there is, it took that long, and no thread has stalled
    assert [tile.stage for tile in timeline.tiles] == [Stage.INFER]
    assert timeline.tiles[0].duration_ns == pytest.approx(ms * 1e6 / k, abs=2)
    assert timeline.tiles[0].cpu_ns == UNKNOWN_CPU
    # And the answers are the real ones, in their order
    np.testing.assert_array_equal(outputs["sums"], batch.sum((2, 3)))


def test_answers_go_by_the_image_and_not_by_its_place(tmp_path: Path) -> None:
    clock, batch = Clock(), images(4)
    real = Sums()
    replayed = backend(tmp_path, clock, real=real)
    replayed.infer(batch, Timeline("record"))
    # When the images come in another order, one of them twice
    order = [2, 0, 2, 3]
    outputs = replayed.infer(batch[order], Timeline("test"))
    assert outputs["rows"].tolist() == order
    # Then nothing was computed again
    assert real.batches == [4]
    # And what the caller does to his outputs is his
    outputs["rows"][...] = -1
    assert replayed.infer(batch[order], Timeline("test"))["rows"].tolist() == order


def test_what_is_not_recorded_is_computed_once_in_its_real_time_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, batch = Clock(), images(3)
    real = Sums(clock, 50_000_000)
    replayed = backend(tmp_path, clock, real=real)
    replayed.infer(batch[:1], Timeline("record"))
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        _, timeline = took(replayed, clock, batch)
    # Then only what was new was computed, and the ledger has the time that it took
    assert real.batches == [1, 2]
    assert timeline.total_ns == 50_000_000
    assert clock.slept == []
    # And the second time they are there
    _, timeline = took(replayed, clock, batch)
    assert real.batches == [1, 2]
    assert timeline.total_ns == 4_500_000


def test_an_image_that_comes_twice_in_a_batch_is_computed_once(tmp_path: Path) -> None:
    real = Sums()
    batch = images(2)[[0, 1, 0]]
    outputs = backend(tmp_path, Clock(), real=real).infer(batch, Timeline("test"))
    assert real.batches == [2]
    np.testing.assert_array_equal(outputs["sums"], batch.sum((2, 3)))


def test_without_the_real_model_what_is_not_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Internal, match=r"2 of 2 inputs are not in the recording .*record them where it is"):
        backend(tmp_path, Clock()).infer(images(2), Timeline("test"))


def test_what_looking_up_takes_longer_is_in_the_ledger_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, batch = Clock(), images(1)
    backend(tmp_path, Clock(), real=Sums()).infer(batch, Timeline("record"))
    replayed = backend(tmp_path, clock, k=32)  # 0.25 ms

    def slow(item: Array) -> str:
        clock.ns += 400_000
        return digest(item)

    monkeypatch.setattr(replay, "digest", slow)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            _, timeline = took(replayed, clock, batch)
            assert timeline.total_ns == 400_000
    assert caplog.text.count("0.15 ms longer than the emulated time") == 1


@given(st.integers(0, 2**32), st.sampled_from(["float32", "uint8", "float64"]))
def test_a_digest_is_of_all_of_an_input(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    item = rng.integers(1, 200, (3, 4, 4)).astype(dtype)
    name = digest(item)
    assert digest(item.copy()) == digest(np.asfortranarray(item)) == name
    changed = item.copy()
    changed[tuple(rng.integers(0, s) for s in item.shape)] += 1
    assert len({name, digest(changed), digest(item.reshape(3, 16)), digest(item.view(np.uint8))}) == (
        4 if dtype != "uint8" else 3
    )


def test_a_damaged_recording_is_computed_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batch, real = images(1), Sums()
    backend(tmp_path, Clock(), real=real).infer(batch, Timeline("record"))
    [file] = tmp_path.glob("*.npz")
    for damaged in (b"", file.read_bytes()[:-30]):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            outputs = backend(tmp_path, Clock(), real=real).infer(batch, Timeline("test"))
        np.testing.assert_array_equal(outputs["sums"], batch.sum((2, 3)))
    assert real.batches == [1, 1, 1]
    assert caplog.text.count("they are computed anew") == 2


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    (tmp_path / "net.onnx").write_bytes(b"net")
    return ModelSpec(
        "net",
        "classification",
        RECIPE,
        (TensorSpec("sums", "float32", (-1, 3)),),
        onnx=tmp_path / "net.onnx",
        acceleration=8,
        record=tmp_path / "record",
    )


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Sums:
    """What is loaded for the real model."""
    made = Sums()

    def load(name: str, spec: ModelSpec, *rest: Any, **more: Any) -> Sums:
        assert spec.acceleration is None
        made.loads.append((name, *rest, more))
        return made

    monkeypatch.setattr(backends, "load", load)
    return made


def test_the_real_model_is_measured_once_for_all_k(spec: ModelSpec, real: Sums) -> None:
    placement = Placement("cuda", 2, 6, "float16")
    first = replay.load(spec, placement)
    # Then it was loaded as it would be alone, and has taken 1, 2, 4 and 6
    more = {"precision": "float16", "engine_cache": "", "workspace_mib": 4096}
    assert real.loads == [("onnxruntime", "cuda", 2, 6, more)]
    assert sorted(set(real.batches)) == [1, 2, 4, 6]
    assert first.platform == "emulated_8x_sums"
    assert first.emulated
    measured = len(real.batches)
    # And another k divides the same times
    assert spec.record is not None
    recorded = json.loads((spec.record / "recording.json").read_text())
    other = replay.load(dataclasses.replace(spec, acceleration=2.5), placement)
    assert other.platform == "emulated_2.5x_sums"
    assert json.loads((spec.record / "recording.json").read_text()) == recorded
    assert recorded["on"] == "sums on cuda, float16"
    assert len(real.batches) == measured
    # And a larger batch than was measured is measured
    replay.load(spec, dataclasses.replace(placement, max_batch=16))
    assert max(real.batches) == 16
    first.close()
    assert real.closed


def test_only_inference_is_divided(spec: ModelSpec) -> None:
    # Given a model whose upload takes long
    class Uploads(Sums):
        def infer(self, batch: Array, timeline: Timeline) -> Tensors:
            timeline.last_ns -= 10**10
            return super().infer(batch, timeline)

    assert max(replay.measure(Uploads(), spec, 1).values()) < 1000


def test_without_the_real_model_times_must_be_there(
    spec: ModelSpec, real: Sums, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise ConfigurationError("no GPU is here")

    replay.load(spec, Placement(max_batch=2)).infer(images(2), Timeline("record"))
    monkeypatch.setattr(backends, "load", absent)
    # Given times of batches of two, then batches of two can be replayed where the real model is not
    with caplog.at_level(logging.WARNING):
        replayed = replay.load(spec, Placement(max_batch=2))
    assert "cannot be loaded (no GPU is here)" in caplog.text
    np.testing.assert_array_equal(replayed.infer(images(2), Timeline("test"))["sums"], images(2).sum((2, 3)))
    with pytest.raises(Internal, match="1 of 1 inputs are not in the recording"):
        replayed.infer(images(1, seed=2), Timeline("test"))
    # But nothing larger, and nothing without times
    with pytest.raises(ConfigurationError, match="no GPU is here"):
        replay.load(spec, Placement(max_batch=4))
    with pytest.raises(ConfigurationError, match="no GPU is here"):
        replay.load(dataclasses.replace(spec, record=spec.record.parent / "other"), Placement())  # type: ignore[union-attr]


def test_a_recording_of_another_model_is_refused(spec: ModelSpec, real: Sums) -> None:
    replay.load(spec, Placement())
    assert spec.onnx is not None
    spec.onnx.write_bytes(b"another net")
    with pytest.raises(ConfigurationError, match=r"is a recording of another model; remove that folder"):
        replay.load(spec, Placement())


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": "m", "on": "o", "platform": "p", "ms": {"2": 1}}'])
def test_a_file_that_is_no_recording_is_refused(spec: ModelSpec, real: Sums, content: str) -> None:
    assert spec.record is not None
    spec.record.mkdir()
    (spec.record / "recording.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"recording\.json .*remove it"):
        replay.load(spec, Placement())


def test_instances_that_load_at_once_measure_one_after_the_other(spec: ModelSpec, real: Sums) -> None:
    barrier = threading.Barrier(3)

    def one(_: int) -> Any:
        barrier.wait(30)
        return replay.load(spec, Placement(max_batch=2))

    with ThreadPoolExecutor(3) as pool:
        assert len(list(pool.map(one, range(3)))) == 3
    # Then one of them measured
    assert len(real.batches) == 2 * 7


def test_a_backend_that_is_named_is_what_is_measured(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    given_: list[Placement] = []

    def load(spec: ModelSpec, placement: Placement) -> Any:
        given_.append(placement)
        return backend(Path(str(spec.record)), Clock())

    monkeypatch.setattr(replay, "load", load)
    for name in ("torch", "replay"):
        backends.load(name, spec, "cpu", 1)
    assert [placement.real for placement in given_] == ["torch", ""]
