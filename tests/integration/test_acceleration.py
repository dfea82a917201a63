"""An emulated accelerator behind a door: the real answers, sooner, and labelled EMULATED behind every link."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadgen.target import OipTarget, image_tensor
from services.accounting import Stage, monotonic_ns, total_ns
from services.errors import ConfigurationError
from services.inference.backends.recording import Recording
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.photographs import CLASSES, jpeg

WAIT = 20.0
K = 4


def models_file(folder: Path) -> Path:
    """The default model, and the same with an accelerator."""
    source = Path(__file__).parents[2]
    table = f"""
task = "classification"
onnx = "{source}/models/efficientnet-lite0.onnx"
labels = "{source}/services/models/imagenet_labels.txt"
recipe = {{ size = 224, crop = 256, mean = [127, 127, 127], std = [128, 128, 128] }}
outputs = {{ logits = {{ dtype = "float32", shape = [-1, 1000] }} }}
"""
    file = folder / "models.toml"
    file.write_text(f'[real]{table}\n[sooner]{table}acceleration = {K}\nrecord = "record"\n')
    return file


@contextmanager
def door(folder: Path, link: str, *flags: str) -> Iterator[OipTarget]:
    arguments = ["--listen", "127.0.0.1:0", "--models-file", str(models_file(folder)), "--link", link, *flags]
    service = build_preprocess(parse(PreprocessSettings, "", arguments, {}))
    service.start()
    target = OipTarget(service.host_port, "classification", WAIT)
    try:
        yield target
    finally:
        target.close()
        service.stop(5)


def test_the_answers_are_the_real_ones_and_the_time_is_divided(tmp_path: Path) -> None:
    with door(tmp_path, "real=fused:") as target:
        assert not target.emulated()
        expected = {name: answer(target, name) for name in CLASSES}
    with door(tmp_path, "sooner=fused:") as target:
        assert target.emulated()
        # Given that all samples have been there once
        first = {name: answer(target, name) for name in CLASSES}
        again = [(name, *timed(target, name)) for _ in range(5) for name in CLASSES]
    # Then every answer is the real model's
    assert first == expected
    assert all(said == expected[name] for name, said, _ in again)
    # And inference takes the measured time divided by k, and what sleeping overshoots
    times = Recording(tmp_path / "record").times()
    assert times is not None
    assert min(ns for _, _, ns in again) >= times.at(1) * 1e6 / K
    assert statistics.median(ns for _, _, ns in again) < times.at(1) * 1e6 / K + 2_000_000


def answer(target: OipTarget, name: str) -> tuple[object, ...]:
    return timed(target, name)[0]


def timed(target: OipTarget, name: str) -> tuple[tuple[object, ...], int]:
    """The likeliest classes with their scores, and the nanoseconds of inference."""
    exchange = target.send(image_tensor(jpeg(name)), name, monotonic_ns()).result(WAIT)
    assert exchange.error is None, exchange.message
    assert total_ns(exchange.tiles) == exchange.total_ns
    infer = [tile.duration_ns for tile in exchange.tiles if tile.stage is Stage.INFER]
    assert len(infer) == 1
    return (exchange.outputs["classes"].tolist(), exchange.outputs["scores"].tolist()), infer[0]


def test_it_is_emulated_also_behind_a_link(tmp_path: Path) -> None:
    with door(tmp_path, "sooner=grpc://127.0.0.1:9") as target:
        assert target.emulated()


def test_a_precision_that_the_real_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="onnxruntime computes in float32"),
        door(tmp_path, "sooner=fused:", "--precision", "float16"),
    ):
        pass
