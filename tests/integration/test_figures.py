"""A figure, small, with real services: carried out once, kept, concluded, on a page."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
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
from services.local.errors import LocalStackError

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
    (place / "step.json").write_text(json.dumps({"fingerprint": step.fingerprint}))
    # A record without its run is none.
    assert not kept(figure, tmp_path / "out")
    (place / "run.json").write_text(json.dumps({"schema": SCHEMA, "environment": environment()}))
    assert kept(figure, tmp_path / "out")
    (place / "step.json").write_text(json.dumps({"fingerprint": "of another"}))
    assert not kept(figure, tmp_path / "out")
    assert done_already(figure, tmp_path / "out")[0].reason == "carried out by another plan than today's"
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


def _failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [(LocalStackError("no port is free"), "no port is free"), (TimeoutError(), "no answer within 30 s")],
)
def test_a_step_that_cannot_be_carried_out_says_why(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    monkeypatch.setattr(conducting, "Stack", _failing(error))
    done = conduct(dataclasses.replace(figure, steps=figure.steps[:1]), tmp_path / "out", _samples, _SILENT)
    assert said in done[0].reason
    assert done[0].folder is None


def test_ctrl_c_goes_through_and_keeps_nothing_of_the_step(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given Ctrl-C while a step is measured
    monkeypatch.setattr("loadgen.experiment._Measuring.run", _failing(KeyboardInterrupt()))
    # Then it ends all figures, and no part of the step passes for the whole
    with pytest.raises(KeyboardInterrupt):
        conduct(figure, tmp_path / "out", _samples, _SILENT)
    assert not kept(figure, tmp_path / "out")


def test_a_run_that_is_not_wholly_written_does_not_stand_beside_an_older_record(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a record of another plan's run, and a disk that is full when its successor is written
    one = dataclasses.replace(figure, steps=figure.steps[:1])
    place = tmp_path / "out" / one.id / one.steps[0].folder
    place.mkdir(parents=True)
    (place / "step.json").write_text(json.dumps({"fingerprint": "of another"}))
    monkeypatch.setattr(conducting, "save", _failing(OSError("no space left on device")))
    # When
    with pytest.raises(OSError, match="no space"):
        conduct(one, tmp_path / "out", _samples, _SILENT)
    # Then the other plan, when it is asked for again, does not find its record there
    assert not (place / "step.json").exists()


def test_what_is_there_already_stays_on_the_page_with_its_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a step of E3 that was carried out, without any cell that can be used, and nothing that can be now
    monkeypatch.setattr(conducting, "lacking", lambda step: "it is not here")
    step = load_figure("e3").steps[0]
    place = tmp_path / "out" / "runs" / "e3" / step.folder
    place.mkdir(parents=True)
    (place / "step.json").write_text(json.dumps({"fingerprint": step.fingerprint}))
    run = {"schema": SCHEMA, "environment": environment(), "started": "2026-01-02T03:04:05Z", "cells": []}
    (place / "run.json").write_text(json.dumps(run))
    # When another one is asked for
    make_figures(["e7"], tmp_path / "out", tmp_path / "results.md", _SILENT, full=False)
    # Then both are on the page
    text = (tmp_path / "results.md").read_text()
    assert "## E3" in text
    assert "## E7" in text
    assert "measured 2026-01-02, at a reduced size" in text


def test_a_page_is_written_where_nothing_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine without Redis, Kafka, torch: all is lacking
    monkeypatch.setattr(conducting, "lacking", lambda step: "it is not here")
    # When
    said = make_figures(["e3"], tmp_path / "out", tmp_path / "docs" / "results.md", _SILENT, full=False)
    # Then
    assert len(said) == 1
    text = (tmp_path / "docs" / "results.md").read_text()
    assert text.count("NOT RUN: it is not here") == len(load_figure("e3").steps)
