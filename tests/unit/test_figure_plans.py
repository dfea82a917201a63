"""The experiments' plans: all can be read, each has its conclusion and its overlays, and what is odd is refused."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
import yaml

from loadgen.errors import PlanError
from loadgen.figures import conduct
from loadgen.figures.conduct import lacking
from loadgen.figures.experiments import TABLE
from loadgen.figures.experiments.e9 import faces_of
from loadgen.figures.figure import PLANS, ids, load_figure
from loadgen.plan import load_plan, parse_plan
from loadgen.samples import MOST

ROOT = Path(__file__).parents[2]

TINY = """
seed = 1
task = "classification"
[figure]
title = "tiny"
full = 3
[figure.full_samples]
medium = 1
[samples]
small = 2
[[load]]
name = "one"
schedule = "closed(1)"
requests = 5
at_most_s = 2.0
[[step]]
name = "A step, here"
transports = ["fused"]
model = "emulated"
"""


def _write(folder: Path, text: str, name: str = "e3-tiny.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_every_figure_has_its_conclusion_and_nothing_else_has() -> None:
    assert ids() == list(TABLE)


@pytest.mark.parametrize("id_", ids())
def test_a_figure_can_be_read_and_its_overlays_are_there(id_: str) -> None:
    figure = load_figure(id_)
    for overlay in figure.overlays:
        assert (ROOT / "charts" / "beyond-inference" / "experiments" / overlay).is_file()
    assert figure.title
    assert figure.question.endswith("?")
    assert figure.differs
    for step in figure.steps:
        lacking(step)  # raises for needs and models that nobody knows
        assert figure.plan_of(step).loads


@pytest.mark.parametrize("id_", ids())
def test_a_figures_overlays_ask_for_at_least_what_its_plan_asks_for(id_: str) -> None:
    # Given what its plan asks, of which sizes
    figure = load_figure(id_)
    asked = {(size, schedule) for load in figure.plan.loads for size, schedule in load.schedule.items()}
    for overlay in figure.overlays:
        # When the plan of its overlay for a cluster is read
        values = yaml.safe_load((ROOT / "charts" / "beyond-inference" / "experiments" / overlay).read_text())
        plan = parse_plan(tomllib.loads(values["load"]["plan"]), overlay, PLANS)
        # Then that asks it as well
        assert plan.task == figure.plan.task
        assert asked <= {(size, schedule) for load in plan.loads for size, schedule in load.schedule.items()}


def test_a_device_of_the_figures_is_the_one_that_pods_of_a_cluster_stand_in_for() -> None:
    [overlay] = load_figure("e8").overlays
    values = yaml.safe_load((ROOT / "charts" / "beyond-inference" / "experiments" / overlay).read_text())
    there = tomllib.loads(values["modelStore"]["inline"])["emulated"]
    here = tomllib.loads((PLANS / "figures-models.toml").read_text(encoding="utf-8"))["device"]
    assert there["law"] == here["law"]


@pytest.mark.parametrize("id_", ids())
def test_only_what_the_abstract_says_is_printed_as_the_papers(id_: str) -> None:
    figure = load_figure(id_)
    in_abstract = {"e3": "56 %", "e5": "80 %", "e9": "2.25"}
    if figure.source == "abstract":
        assert in_abstract[id_] in figure.paper
    else:
        assert not any(number in figure.paper for number in in_abstract.values())
        assert bool(figure.paper) == bool(figure.source)


def test_at_full_size_frames_have_all_numbers_of_faces() -> None:
    assert {faces_of(size) for size in load_figure("e9", full=True).plan.samples} == {1, 2, 4, 8, 9, 16, 25, 32}


def test_at_full_size_there_is_more_of_everything(tmp_path: Path) -> None:
    # Given
    folder = _write(tmp_path, TINY)
    # When
    reduced, full = load_figure("e3", folder=folder), load_figure("e3", folder=folder, full=True)
    # Then
    [few], [many] = reduced.plan.loads, full.plan.loads
    assert (few.requests["small"], many.requests["small"]) == (5, 15)
    assert (few.at_most_s, many.at_most_s) == (2.0, 6.0)
    assert (reduced.plan.samples, full.plan.samples) == ({"small": 2}, {"small": 6, "medium": 3})
    assert many.requests["medium"] == 15
    # and the numbers of one are not taken for those of the other
    assert reduced.steps[0].fingerprint != full.steps[0].fingerprint


@pytest.mark.parametrize(
    ("before", "after", "others"),
    [
        ('title = "tiny"', 'title = "other words"', False),
        ("seed = 1", "seed = 2", True),
        ('model = "emulated"', 'model = "emulated"\nengine = "--max-batch 2"', True),
        ("requests = 5", "requests = 6", True),
    ],
)
def test_what_changes_the_numbers_changes_the_fingerprint_and_words_do_not(
    tmp_path: Path, before: str, after: str, others: bool
) -> None:
    first = load_figure("e3", folder=_write(tmp_path, TINY)).steps[0].fingerprint
    assert before in TINY
    second = load_figure("e3", folder=_write(tmp_path, TINY.replace(before, after))).steps[0].fingerprint
    assert (first != second) is others


def test_another_models_file_is_another_fingerprint(tmp_path: Path) -> None:
    # Given a step with a models file of its own
    text = TINY.replace('model = "emulated"', 'model = "emulated"\nmodels_file = "models.toml"')
    (tmp_path / "models.toml").write_text("# before\n")
    first = load_figure("e3", folder=_write(tmp_path, text)).steps[0].fingerprint
    # When that file has changed
    (tmp_path / "models.toml").write_text("# after\n")
    # Then what was measured with it does not count
    assert load_figure("e3", folder=tmp_path).steps[0].fingerprint != first


def test_at_full_size_no_more_images_are_asked_for_than_can_be_made(tmp_path: Path) -> None:
    text = TINY.replace("full = 3", "full = 1000").replace("seed = 1", "seed = 1\nwarmup_s = 2.0")
    plan = load_figure("e3", folder=_write(tmp_path, text), full=True).plan
    assert plan.samples["small"] == MOST
    assert plan.warmup_s == 4


def test_another_step_does_not_change_those_that_there_are(tmp_path: Path) -> None:
    more = TINY + '[[step]]\nname = "another"\ntransports = ["grpc"]\n'
    first = load_figure("e3", folder=_write(tmp_path, TINY)).steps[0].fingerprint
    assert load_figure("e3", folder=_write(tmp_path, more)).steps[0].fingerprint == first


def test_a_step_may_ask_some_of_the_sizes_and_loads(tmp_path: Path) -> None:
    text = TINY.replace("small = 2", "small = 2\nmedium = 2").replace(
        'transports = ["fused"]', 'transports = ["fused"]\nsizes = ["medium"]'
    )
    figure = load_figure("e3", folder=_write(tmp_path, text))
    plan = figure.plan_of(figure.steps[0])
    assert set(plan.samples) == {"medium"}
    assert set(plan.loads[0].requests) == {"medium"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('title = "tiny"', 'title = "tiny"\ncolour = "red"', "colour"),
        ('title = "tiny"', 'title = "tiny"\nsource = "hearsay"', "hearsay"),
        ('model = "emulated"', 'modle = "emulated"', "modle"),
        ('transports = ["fused"]', "transports = []", "transports"),
        ('model = "emulated"', 'sizes = ["huge"]', "huge"),
        ('model = "emulated"', 'loads = ["two"]', "two"),
        ("seed = 1", "seeed = 1", "seeed"),
    ],
)
def test_what_is_odd_is_refused_by_its_name(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in TINY
    with pytest.raises(PlanError, match=said):
        load_figure("e3", folder=_write(tmp_path, TINY.replace(before, after)))


def test_two_steps_cannot_have_one_folder(tmp_path: Path) -> None:
    twin = '[[step]]\nname = "a step here"\ntransports = ["fused"]\n'
    with pytest.raises(PlanError, match="same name"):
        load_figure("e3", folder=_write(tmp_path, TINY + twin))


def test_a_figure_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(PlanError, match=r"no figure 'e99'; there is e1, e2"):
        load_figure("e99")


def test_what_a_step_needs_is_known_by_name(tmp_path: Path) -> None:
    text = TINY.replace('model = "emulated"', 'needs = ["a bigger boat"]')
    [step] = load_figure("e3", folder=_write(tmp_path, text)).steps
    with pytest.raises(PlanError, match="a bigger boat"):
        lacking(step)


@pytest.mark.parametrize("there", ["", "nvidia", "nvidia, nvidia.dali"])
def test_a_step_that_needs_dali_needs_a_gpu_and_torch_and_its_package(
    monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    # Given the step of E6, on a machine without a GPU
    [step] = [step for step in load_figure("e6").steps if "dali" in step.preprocess]
    monkeypatch.setattr(conduct, "_cuda", lambda: "this machine has no NVIDIA GPU")
    assert lacking(step) == "this machine has no NVIDIA GPU"
    # When there is one, and torch, and of NVIDIA's packages none, others, or DALI
    monkeypatch.setattr(conduct, "_cuda", lambda: "")
    monkeypatch.setattr(conduct, "_torch", lambda: "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there.split(", ") else None)
    # Then what is missing is named
    assert ("DALI is not in this environment" in lacking(step)) == ("nvidia.dali" not in there)


def test_a_models_file_that_is_not_there_says_how_it_comes(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(
        '[absent]\ntask = "classification"\nonnx = "absent.onnx"\nlabels = "labels.txt"\n'
        "[absent.recipe]\nsize = 8\ncrop = 8\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n"
        '[absent.outputs]\nlogits = { dtype = "float32", shape = [-1, 2] }\n'
    )
    (tmp_path / "labels.txt").write_text("a\nb\n")
    text = TINY.replace('model = "emulated"', 'model = "absent"\nmodels_file = "models.toml"')
    [step] = load_figure("e3", folder=_write(tmp_path, text)).steps
    assert "make models" in lacking(step)


def test_the_plans_of_figures_are_no_plans_of_runs() -> None:
    # Given a figure's plan, which has keys that a run's has not; then `run` refuses it rather than ignore them
    with pytest.raises(PlanError, match="figure"):
        load_plan(next(PLANS.glob("e3-*.toml")))
