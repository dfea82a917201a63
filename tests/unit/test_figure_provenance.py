"""What a step's numbers were made by, as digests."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from loadgen.figures import provenance
from loadgen.figures.recording import forget_others
from services.inference.backends.recording import FILE
from services.models.catalogue import ModelSpec, load_catalogue

HERE = {"cpu": "one", "cpus": 2, "versions": {"onnxruntime": "1.20"}}


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    """With a file of its own."""
    (tmp_path / "net.onnx").write_bytes(b"a network")
    return dataclasses.replace(load_catalogue(None)["efficientnet-lite0"], name="net", onnx=tmp_path / "net.onnx")


def test_another_network_of_the_same_name_is_another(model: ModelSpec, tmp_path: Path) -> None:
    assert model.onnx is not None
    first = provenance.networks([model])
    others: list[str] = []
    # When its file is another
    model.onnx.write_bytes(b"another one")
    second = provenance.networks([model])
    weights = tmp_path / "net.pt"
    for content in (b"weights", b"others"):
        weights.write_bytes(content)
        others.append(provenance.networks([dataclasses.replace(model, weights=weights)])["net"])
    # Or what is said of it
    third = provenance.networks([dataclasses.replace(model, acceleration=8.0, record=tmp_path)])
    assert len({first["net"], second["net"], third["net"], *others}) == 5


def test_the_same_one_elsewhere_is_the_same(model: ModelSpec, tmp_path: Path) -> None:
    assert model.onnx is not None
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(model.onnx, tmp_path / "moved" / "net.onnx")
    assert provenance.networks([dataclasses.replace(model, onnx=Path(moved))]) == provenance.networks([model])


def test_code_that_changed_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "services").mkdir()
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    digests = []
    for text in ("a = 1", "a = 2"):
        (tmp_path / "services" / "a.py").write_text(text)
        digests.append(provenance.code())
    (tmp_path / "services" / "notes.md").write_text("words")
    assert provenance.code() == digests[1]
    # In each of its folders, each kind, under each name
    for name in ("services/a.proto", "protos/a.proto", "loadgen/b.py", "services/b.py", "services/pom.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 2")
        digests.append(provenance.code())
    assert len(set(digests)) == len(digests)


def test_times_of_another_machine_are_measured_anew_and_answers_stay(model: ModelSpec, tmp_path: Path) -> None:
    # Given a recording of this machine
    record = tmp_path / "recording"
    models = [dataclasses.replace(model, acceleration=8.0, record=record)]
    forget_others(models, HERE)
    (record / FILE).write_text("{}")
    (record / "answer.npz").write_bytes(b"")
    # Then it stays here
    forget_others(models, HERE)
    assert (record / FILE).exists()
    # And elsewhere its times are forgotten
    for elsewhere in (HERE | {"cpu": "another"}, HERE | {"cpus": 4}, HERE | {"versions": {"onnxruntime": "2.0"}}):
        forget_others(models, HERE)
        (record / FILE).write_text("{}")
        forget_others(models, elsewhere)
        assert not (record / FILE).exists()
    assert (record / "answer.npz").exists()


def test_a_recording_that_does_not_say_where_is_of_another_machine(model: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "recording").mkdir()
    (tmp_path / "recording" / FILE).write_text(json.dumps({}))
    forget_others([dataclasses.replace(model, acceleration=8.0, record=tmp_path / "recording")], HERE)
    assert not (tmp_path / "recording" / FILE).exists()
