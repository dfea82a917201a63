"""The page of all figures, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path

from loadgen.figures import page
from loadgen.figures.conclusion import Check, Conclusion
from loadgen.figures.figure import Figure, load_figure
from loadgen.figures.page import Concluded

ABOUT = {"cpu": "a CPU", "cpus": 2, "python": "3.11"}
CONCLUSION = Conclusion(
    "Ours is 3.",
    ["what", "value"],
    [["a | b", "3"]],
    {"e3-cpu": "<svg/>"},
    {"values": [3]},
    [Check("it rises", True), Check("it falls", False), Check("it stays", None)],
)


def _figure() -> Figure:
    return load_figure("e3")


def test_the_page_has_question_paper_answer_picture_table_and_checks() -> None:
    # Given
    unusable = [("preprocessing and network on a GPU", "", "no GPU"), ("CPU", "grpc, large, 1", "it failed")]
    days, why = ["2026-01-03", "2026-01-02"], "2 of 9: not warm (2)"
    entry = Concluded(_figure(), CONCLUSION, unusable, days, ["on this CPU"], why)
    # When
    text = page.render([entry], "figures", ABOUT, full=False)
    # Then
    for part in (
        "## E3: Latency at zero load",
        f"**Question.** {_figure().question}",
        "56 % of the latency of a medium image (its abstract).",
        "**Ours.** Ours is 3.",
        f"**Why they differ.** {_figure().differs}",
        "![Latency at zero load](figures/e3-cpu.svg)",
        "| a \\| b | 3 |",
        "- it rises: holds",
        "- it falls: DOES NOT HOLD",
        "- it stays: too little was measured to say",
        "- preprocessing and network on a GPU: NOT RUN: no GPU",
        "- CPU (grpc, large, 1): not usable: it failed",
        "`charts/beyond-inference/experiments/e3-zero-load.yaml`",
        "a CPU, 2 CPUs, Python 3.11, measured 2026-01-02 to 2026-01-03, at a reduced size",
        # of steps that have numbers
        (
            "**Measured with.** efficientnet-lite0, resnet50-k32; 1 in flight (small, medium, large). "
            "By another state of this project's code: on this CPU."
        ),
        "- CONTENDED cells: 2 of 9: not warm (2)",
    ):
        assert part in text, part
    assert "at full size" in page.render([entry], "figures", ABOUT, full=True)


def test_a_figure_of_which_no_number_is_known_says_so() -> None:
    entry = Concluded(load_figure("e7"), CONCLUSION, [])
    assert "**The paper.** No number is known." in page.render([entry], "figures", ABOUT, full=False)


def test_what_others_say_of_the_paper_is_not_said_to_be_the_papers() -> None:
    text = page.render([Concluded(load_figure("e4"), CONCLUSION, [])], "figures", ABOUT, full=False)
    assert "**Said of the paper.** Queueing: about 60 %" in text
    assert "(a secondary source)" in text
    assert "**The paper.**" not in text
    assert "1, 2, 4, 8, 16, 32, 64 in flight (medium)" in text


def test_of_a_figure_without_any_number_nothing_was_measured_with(tmp_path: Path) -> None:
    figure = _figure()
    entry = Concluded(figure, CONCLUSION, [(step.name, "", "no broker") for step in figure.steps])
    assert "Measured with" not in page.render([entry], "figures", ABOUT, full=False)


def test_files_for_machines_have_the_same(tmp_path: Path) -> None:
    page.save(Concluded(_figure(), CONCLUSION, [("a step", "", "no GPU")]), tmp_path)
    content = json.loads((tmp_path / "e3.json").read_text())
    assert content["table"] == [{"what": "a | b", "value": "3"}]
    assert content["checks"][1] == {"what": "it falls", "held": False}
    assert content["not_usable"] == [{"step": "a step", "cell": "", "why": "no GPU"}]
    assert (tmp_path / "e3-cpu.svg").read_text() == "<svg/>"
