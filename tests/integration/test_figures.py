"""A figure, small, with real services: carried out once, kept, concluded, on a page."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadgen.errors import GeneratorError
from loadgen.experiment import environment
from loadgen.figures import conduct as conducting
from loadgen.figures.cells import cells_of, unusable_of
from loadgen.figures.conduct import conduct, done_already, kept
from loadgen.figures.experiments import TABLE
from loadgen.figures.figure import Figure, load_figure
from loadgen.figures.make import make_figures
from loadgen.progress import Progress
from loadgen.samples import Sample, make
from loadgen.stored import SCHEMA
from services.accounting import Group

PLAN = """
seed = 1
task = "classification"
timeout_s = 30.0
warmup_s = 0.5
calibration_probes = 3
[figure]
title = "tiny"
question = "Is it?"
differs = "It is small."
[samples]
small = 2
medium = 2
[[load]]
name = "1 in flight"
schedule = "closed(1)"
requests = 30
at_most_s = 3.0
[[step]]
name = "both"
transports = ["fused", "grpc"]
model = "emulated"
at = { device = "emulated" }
[[step]]
name = "asked without the door"
transports = ["grpc"]
model = "emulated"
direct = true
sizes = ["medium"]
at = { device = "direct" }
[[step]]
name = "elsewhere"
transports = ["fused"]
needs = ["cuda"]
at = { device = "GPU" }
"""


def _samples(size: str, count: int) -> Sequence[Sample]:
    return make(size, count)


_SILENT = Progress(io.StringIO())


@pytest.fixture
def figure(tmp_path: Path) -> Figure:
    (tmp_path / "e3-tiny.toml").write_text(PLAN, encoding="utf-8")
    return load_figure("e3", folder=tmp_path)


def test_a_figure_is_carried_out_once_and_concluded(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    out = tmp_path / "out"
    assert not kept(figure, out)
    # When
    done = conduct(figure, out, _samples, _SILENT)
    # Then two steps have numbers, and the third says why not
    assert [entry.folder is not None for entry in done[:2]] == [True, True]
    assert "GPU" in done[2].reason or "torch" in done[2].reason
    cells = cells_of(done)
    assert {(cell.target, cell.size) for cell in cells if cell.step.name == "both"} == {
        (target, size) for target in ("fused", "grpc") for size in ("small", "medium")
    }
    assert all(cell.label == "EMULATED" for cell in cells)
    # What is sent to an inference service itself is not preprocessed by it.
    [direct] = [cell for cell in cells if cell.step.direct]
    assert "decode" not in json.dumps(direct.about["stages"])
    conclusion = TABLE["e3"](cells)
    assert len(conclusion.rows) == 5
    # Stages add up to no more than the request took, in each row
    for cell in cells:
        assert 0 < cell.share(*Group).value <= 1 + 1e-9
    assert ("elsewhere", "", done[2].reason) in unusable_of(done)
    # When it is asked for again, nothing is started
    monkeypatch.setattr(conducting, "Stack", None)
    assert conduct(figure, out, _samples, _SILENT) == done
    assert done_already(figure, out) == done


def test_a_plan_that_changed_is_carried_out_anew(figure: Figure, tmp_path: Path) -> None:
    # Given a step's record, of the same figure with another seed
    step = figure.steps[0]
    place = tmp_path / "out" / figure.id / step.folder
    place.mkdir(parents=True)
    (place / "step.json").write_text(json.dumps({"fingerprint": "of another"}))
    assert not kept(figure, tmp_path / "out")
    (place / "step.json").write_text(json.dumps({"fingerprint": step.fingerprint}))
    # A record without its run is none.
    assert not kept(figure, tmp_path / "out")
    run = {"schema": SCHEMA, "environment": environment()}
    (place / "run.json").write_text(json.dumps(run))
    assert kept(figure, tmp_path / "out")
    # A record that a crash left half-written is none.
    (place / "step.json").write_text("{")
    assert not kept(figure, tmp_path / "out")


@pytest.mark.parametrize(
    ("what", "value"), [("cpu", "another CPU"), ("cpus", 64), ("python", "3.9.1"), ("versions", {"numpy": "1.0"})]
)
def test_numbers_of_another_machine_are_not_taken_for_this_ones(
    figure: Figure, tmp_path: Path, what: str, value: object
) -> None:
    # Given a run of the same plan, which was carried out elsewhere
    step = figure.steps[0]
    place = tmp_path / "out" / figure.id / step.folder
    place.mkdir(parents=True)
    (place / "step.json").write_text(json.dumps({"fingerprint": step.fingerprint}))
    (place / "run.json").write_text(json.dumps({"schema": SCHEMA, "environment": environment() | {what: value}}))
    # Then it is none of ours, and the page says why
    assert not kept(figure, tmp_path / "out")
    assert done_already(figure, tmp_path / "out")[0].reason == f"carried out elsewhere: {what} differ"


def test_a_generator_that_fails_is_no_ctrl_c_and_the_next_step_has_its_turn(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a generator that loses a sender
    def failing(*_: object) -> None:
        raise GeneratorError("a sender ended with -9")

    monkeypatch.setattr("loadgen.experiment._Measuring.run", failing)
    # When
    done = conduct(dataclasses.replace(figure, steps=figure.steps[:2]), tmp_path / "out", _samples, _SILENT)
    # Then each step says so, and neither is kept
    assert [entry.reason for entry in done] == ["the generator failed: a sender ended with -9"] * 2
    assert not kept(figure, tmp_path / "out")


def test_a_page_is_written_where_nothing_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine without Redis, Kafka, torch: all is lacking
    monkeypatch.setattr(conducting, "lacking", lambda step: "it is not here")
    # When
    said = make_figures(["e3"], tmp_path / "out", tmp_path / "docs" / "results.md", _SILENT, full=False)
    # Then
    assert len(said) == 1
    text = (tmp_path / "docs" / "results.md").read_text()
    assert text.count("NOT RUN: it is not here") == len(load_figure("e3").steps)
