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
    entry = Concluded(_figure(), CONCLUSION, [("a step", "", "no GPU"), ("CPU", "grpc, large, 1", "it failed")])
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
        "- a step: NOT RUN: no GPU",
        "- CPU (grpc, large, 1): not usable: it failed",
        "`charts/beyond-inference/experiments/e3-zero-load.yaml`",
        "a CPU, 2 CPUs, Python 3.11, at a reduced size",
    ):
        assert part in text, part
    assert "at full size" in page.render([entry], "figures", ABOUT, full=True)


def test_a_figure_of_which_no_number_is_known_says_so() -> None:
    entry = Concluded(load_figure("e7"), CONCLUSION, [])
    assert "**The paper.** No number is known." in page.render([entry], "figures", ABOUT, full=False)


def test_files_for_machines_have_the_same(tmp_path: Path) -> None:
    page.save(Concluded(_figure(), CONCLUSION, [("a step", "", "no GPU")]), tmp_path)
    content = json.loads((tmp_path / "e3.json").read_text())
    assert content["table"] == [{"what": "a | b", "value": "3"}]
    assert content["checks"][1] == {"what": "it falls", "held": False}
    assert content["not_usable"] == [{"step": "a step", "cell": "", "why": "no GPU"}]
    assert (tmp_path / "e3-cpu.svg").read_text() == "<svg/>"
