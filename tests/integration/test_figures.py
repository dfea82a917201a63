"""A figure, small, with real services: carried out once, kept, concluded, on a page."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import GeneratorError, PlanError
from loadgen.experiment import environment
from loadgen.figures import conduct as conducting
from loadgen.figures import provenance
from loadgen.figures.cells import cells_of, unusable_of
from loadgen.figures.conduct import conduct, done_already, kept
from loadgen.figures.experiments import TABLE
from loadgen.figures.figure import Figure, Step, ids, load_figure
from loadgen.figures.make import make_figures
from loadgen.live import Watched
from loadgen.progress import Progress
from loadgen.samples import Sample, make
from loadgen.stored import SCHEMA
from services.accounting import Group
from services.inference.backends.recording import FILE
from services.local import state
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
engines = { "without the door" = "grpc" }
sizes = ["medium"]
at = { device = "in turn" }
[[step]]
name = "elsewhere"
transports = ["fused"]
needs = ["cuda"]
at = { device = "GPU" }
"""

APART = """
[[step]]
name = "in turn"
transports = ["grpc"]
model = "emulated"
inference_cpus = 1
engines = { "without the door" = "grpc" }
beside = [{ name = "another", transports = ["fused"], model = "emulated" }]
sizes = ["medium"]
"""


def _samples(size: str, count: int) -> Sequence[Sample]:
    return make(size, count)


_SILENT = Progress(io.StringIO())


def _written(place: Path, step: Step, environment_: dict[str, Any] | None = None, **record: object) -> None:
    """A step that was carried out as it would be now, but for what is said otherwise, without any cell."""
    place.mkdir(parents=True, exist_ok=True)
    about = {
        "fingerprint": step.fingerprint,
        "networks": provenance.networks(conducting._models(step)),
        "code": provenance.code(),
        "whole": True,
    }
    (place / "step.json").write_text(json.dumps(about | record))
    run = {
        "schema": SCHEMA,
        "environment": environment_ or environment(),
        "started": "2026-01-02T03:04:05Z",
        "cells": [],
    }
    (place / "run.json").write_text(json.dumps(run))


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
    decoded = {cell.target: "decode" in json.dumps(cell.about["stages"]) for cell in cells if cell.step.engines}
    assert decoded == {"grpc": True, "without the door": False}
    conclusion = TABLE["e3"](cells)
    assert len(conclusion.rows) == 6
    # Stages add up to no more than the request took, in each row
    for cell in cells:
        assert 0 < cell.share(*Group).value <= 1 + 1e-9
    assert ("elsewhere", "", done[2].reason) in unusable_of(done)
    # When it is asked for again, nothing is started
    monkeypatch.setattr(conducting, "Stack", None)
    assert conduct(figure, out, _samples, _SILENT) == done
    assert done_already(figure, out) == done


class _Watching(Progress):
    """Notes, while the first load is sent, which CPUs are whose."""

    def __init__(self, folder: Path) -> None:
        super().__init__(io.StringIO())
        self.seen: dict[str, set[int]] = {}
        self._folder = folder

    def watching(self, watched: Watched) -> contextlib.AbstractContextManager[None]:
        if not self.seen:
            recorded = state.read(self._folder)
            assert recorded is not None
            pids = {running.name: running.pid for running in recorded["processes"]}
            self.seen = {name: os.sched_getaffinity(pid) for name, pid in {"client": 0, **pids}.items()}
        return super().watching(watched)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two CPUs")
def test_inference_may_have_cpus_to_itself_and_other_doors_are_asked_in_turn(tmp_path: Path) -> None:
    # Given a step whose inference service has a CPU to itself, and another door beside it
    (tmp_path / "e5-apart.toml").write_text("rounds = 2" + PLAN.partition("[[step]]")[0] + APART, encoding="utf-8")
    apart, every, out = load_figure("e5", folder=tmp_path), os.sched_getaffinity(0), tmp_path / "out"
    display = _Watching(out / "stack")
    # When
    [done] = conduct(apart, out, _samples, display)
    # Then all were asked the same, in rounds
    assert done.reason == ""
    cells = cells_of([done])
    assert {cell.target for cell in cells} == {"grpc", "without the door", "another, fused"}
    assert all(len(cell.about["rounds"]) == 2 for cell in cells)
    # And the door and the generator had the other CPUs, as long as it took; the machine is the whole one
    assert display.seen == {
        "client": every - {max(every)},
        "preprocess": every - {max(every)},
        "inference": {max(every)},
    }
    assert os.sched_getaffinity(0) == every
    assert cells[0].cpus == environment()["cpus"] >= 2
    # Of whom nothing remains
    assert not list(out.glob("stack*/stack.json"))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two CPUs")
def test_what_an_accelerator_is_faster_than_is_measured_with_all_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a step of an accelerated model whose inference service has a CPU to itself
    root = Path(conducting.__file__).parents[2]
    model = f'task = "classification"\nonnx = "{root}/models/efficientnet-lite0.onnx"\nacceleration = 8\n'
    model += f'record = "{tmp_path}/record"\nlabels = "{root}/services/models/imagenet_labels.txt"\n'
    recipe = "size = 224\ncrop = 256\nmean = [127, 127, 127]\nstd = [128, 128, 128]\n"
    outputs = '[sooner.outputs]\nlogits = { dtype = "float32", shape = [-1, 1000] }\n'
    (tmp_path / "models.toml").write_text(f"[sooner]\n{model}[sooner.recipe]\n{recipe}{outputs}", encoding="utf-8")
    step = '[[step]]\nname = "x"\ntransports = ["grpc"]\nmodel = "sooner"\nmodels_file = "models.toml"\n'
    step += 'inference_cpus = 1\nsizes = ["small"]\n'
    (tmp_path / "e5-apart.toml").write_text(PLAN.partition("[[step]]")[0] + step, encoding="utf-8")
    out, seen = tmp_path / "out", list[tuple[set[int], bool]]()

    def watched(*arguments: Any) -> None:
        recorded = state.read(out / "stack")
        assert recorded is not None
        [pid] = [running.pid for running in recorded["processes"] if running.name == "inference"]
        seen.append((os.sched_getaffinity(pid), (tmp_path / "record" / FILE).exists()))
        recording(*arguments)

    recording = conducting.record
    monkeypatch.setattr(conducting, "record", watched)
    # When
    [done] = conduct(load_figure("e5", folder=tmp_path), out, _samples, _SILENT)
    # Then it was measured, when the model was loaded, before the service was bound
    assert done.reason == ""
    every = os.sched_getaffinity(0)
    assert seen == [(every, True), ({max(every)}, True)]


_BESIDE = 'beside = [{{ name = "{name}", transports = ["fused"], model = "emulated" }}]'


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('engines = { "alone" = "kafka" }', "names kafka, which are none of its transports with an inference service"),
        ('engines = { "alone" = "fused" }', "names fused, .*: grpc"),
        ('engines = { "grpc" = "grpc" }', "called grpc; give each a name of its own"),
        ('engines = { "x, fused" = "grpc" }\n' + _BESIDE.format(name="x"), "called x, fused;"),
        ('beside = [{ name = "alone" }]', "a name, transports and a model"),
    ],
)
def test_what_cannot_be_asked_in_turn_is_said(tmp_path: Path, lines: str, says: str) -> None:
    step = f'[[step]]\nname = "odd"\ntransports = ["fused", "grpc"]\nmodel = "emulated"\n{lines}\n'
    (tmp_path / "e5-odd.toml").write_text(PLAN.partition("[[step]]")[0] + step, encoding="utf-8")
    with pytest.raises(PlanError, match=says):
        load_figure("e5", folder=tmp_path)


def test_a_step_that_wants_more_cpus_than_there_are_is_not_run(figure: Figure) -> None:
    step = dataclasses.replace(figure.steps[0], inference_cpus=1000)
    assert "cannot have 1000 CPUs to itself" in conducting.lacking(step)


def test_a_plan_or_a_network_that_changed_is_carried_out_anew(figure: Figure, tmp_path: Path) -> None:
    # Given a step's record, of the same figure with another seed
    step, out = figure.steps[0], tmp_path / "out"
    place = out / figure.id / step.folder
    _written(place, step)
    assert kept(figure, out)
    _written(place, step, fingerprint="of another")
    assert not kept(figure, out)
    assert done_already(figure, out)[0].reason == "carried out by another plan than today's"
    # Or with another network of that name
    _written(place, step, networks={"emulated": "of another"})
    assert not kept(figure, out)
    assert done_already(figure, out)[0].reason == "carried out with another emulated than today's"
    # A record without its run is none, nor is one that a crash left half-written, or that an older version wrote
    _written(place, step)
    (place / "run.json").unlink()
    assert not kept(figure, out)
    for record in ("{", json.dumps({"fingerprint": step.fingerprint})):
        _written(place, step)
        (place / "step.json").write_text(record)
        assert not kept(figure, out)


def test_numbers_by_other_code_stay_and_are_said_to_be_such(figure: Figure, tmp_path: Path) -> None:
    step, out = figure.steps[0], tmp_path / "out"
    _written(out / figure.id / step.folder, step, code="of another")
    assert [entry.by_other_code for entry in done_already(figure, out)] == [True, False, False]


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("cpu", "another CPU", "cpu"),
        ("cpus", 64, "cpus"),
        ("python", "3.9.1", "python"),
        ("versions", {"numpy": "1.0"}, "numpy"),
    ],
)
def test_numbers_of_another_machine_are_not_taken_for_this_ones(
    figure: Figure, tmp_path: Path, what: str, value: object, said: str
) -> None:
    # Given a run of the same plan, which was carried out elsewhere
    step = figure.steps[0]
    _written(tmp_path / "out" / figure.id / step.folder, step, environment() | {what: value})
    # Then it is none of ours, and the page says why
    assert not kept(figure, tmp_path / "out")
    assert done_already(figure, tmp_path / "out")[0].reason == f"carried out elsewhere: {said} differ"


def test_an_environment_with_torch_is_no_other_machine_than_the_same_without(figure: Figure, tmp_path: Path) -> None:
    step, here = figure.steps[0], environment()
    more = here | {"versions": here["versions"] | {"a package that is not here": "2.9.1"}}
    _written(tmp_path / "out" / figure.id / step.folder, step, more)
    assert kept(figure, tmp_path / "out")


def test_a_transport_that_could_not_be_started_has_another_try_next_time(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a step of which one transport has no numbers
    step, out = figure.steps[0], tmp_path / "out"
    _written(out / figure.id / step.folder, step, whole=False)
    # Then it is on a page
    assert done_already(figure, out)[0].folder is not None
    # And carried out again when its figure is asked for; what there is stays, where that is not better
    tried: list[object] = []

    def failing(*_: object, **__: object) -> None:
        tried.append(1)
        raise LocalStackError("still not")

    monkeypatch.setattr(conducting, "Stack", failing)
    one = dataclasses.replace(figure, steps=(step,))
    assert conduct(one, out, _samples, _SILENT) == done_already(one, out)
    assert tried


def test_what_changes_while_it_is_measured_was_not_measured(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a network that is written anew while a load runs, as `make models` may
    one = dataclasses.replace(figure, steps=figure.steps[1:2])
    digests = iter(["before", "after"])
    monkeypatch.setattr(conducting.provenance, "networks", lambda models: {"emulated": next(digests, "after")})
    # Then its numbers are nobody's
    [done] = conduct(one, tmp_path / "out", _samples, _SILENT)
    assert done.reason == "a network was written anew while it was measured"
    assert not kept(one, tmp_path / "out")


def test_code_that_changes_while_it_is_measured_is_other_code(
    figure: Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conducting.provenance, "CODE_AT_START", "of a process that began before the last edit")
    one = dataclasses.replace(figure, steps=figure.steps[1:2])
    assert [entry.by_other_code for entry in conduct(one, tmp_path / "out", _samples, _SILENT)] == [True]


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
    _written(place, one.steps[0], fingerprint="of another")
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
    _written(tmp_path / "out" / "runs" / "e3" / step.folder, step, code="of another")
    whole = tmp_path / "results.md"
    whole.write_text("of all figures, elsewhere")
    # When another one is asked for
    made = make_figures(["e7"], tmp_path / "out", whole, _SILENT, full=False)
    # Then both are on a page, which does not replace the one that has all
    assert made.page == tmp_path / "out" / "results.md"
    text = made.page.read_text()
    assert "## E3" in text
    assert "## E7" in text
    assert "measured 2026-01-02, at a reduced size" in text
    assert f"By another state of this project's code: {step.name}." in text
    assert whole.read_text() == "of all figures, elsewhere"


def test_the_whole_page_is_not_replaced_by_what_is_left_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a step of each figure, while the others would have to be carried out anew
    monkeypatch.setattr(conducting, "lacking", lambda step: "it is not here" if step.name == "never" else "")
    for id_ in ids():
        step = load_figure(id_).steps[0]
        _written(tmp_path / "out" / "runs" / id_ / step.folder, step)
    whole = tmp_path / "results.md"
    whole.write_text("of all figures")
    # When one is asked for, of which nothing can be carried out
    monkeypatch.setattr(conducting, "_carry_out", lambda *_: "not now")
    made = make_figures(["e7"], tmp_path / "out", whole, _SILENT, full=False)
    # Then
    assert made.page != whole
    assert whole.read_text() == "of all figures"


def test_a_page_is_written_where_nothing_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine without Redis, Kafka, torch: all is lacking
    monkeypatch.setattr(conducting, "lacking", lambda step: "it is not here")
    # When
    made = make_figures(ids(), tmp_path / "out", tmp_path / "docs" / "results.md", _SILENT, full=False)
    # Then
    assert [line.split()[0] for line in made.said] == ids()
    assert made.page == tmp_path / "docs" / "results.md"
    text = made.page.read_text()
    assert text.count("NOT RUN: it is not here") == sum(len(load_figure(id_).steps) for id_ in ids())
