"""The page of a knee: well formed, of nothing but itself, and its marks are the trials."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from loadgen.report_knee import render, write

HOSTILE = "</title><script>alert(1)</script>"


def trial(rate: float, value: float | None, held: bool | None, **more: Any) -> dict[str, Any]:
    return {
        "rate_rps": rate,
        "requests": 1324,
        "counted": 1300,
        "errors": 0,
        "value_ms": value,
        "low_ms": None if value is None else value * 0.9,
        "high_ms": None if value is None else value * 1.2,
        "effective_n": 410.0,
        "achieved_rps": rate * 0.99,
        "warmup_cut": 0,
        "held": held,
        "reason": "because",
        "seconds": 10.0,
        **more,
    }


def result(*trials: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "schema": "beyond-inference/knee/1",
        "url": "grpc://door:8001",
        "task": "classification",
        "arrivals": "poisson",
        "label": "MEASURED",
        "generator": {"senders": 1, "ceiling_rps": 9000.0},
        "objective": {"text": "p99<50ms", "quantile": 0.99, "limit_ms": 50.0},
        "limits": {"confidence": 0.95},
        "held_rps": 40.0,
        "failed_rps": 44.0,
        "confirmed": True,
        "because": "the bracket is within 10%",
        "seconds": 120.0,
        "trials": list(trials),
        **more,
    }


FULL = result(
    trial(20, 12.0, True),
    trial(40, 31.0, True, high_ms=None),
    trial(80, None, False),
    trial(44, 51.0, None),
    trial(40, 33.0, True),
)


def parse(page: str) -> ET.Element:
    return ET.fromstring(page.removeprefix("<!doctype html>\n"))  # noqa: S314 # our own page


def test_every_trial_is_a_mark_and_a_row() -> None:
    root = parse(render(FULL))
    marks = [g for g in root.iter("g") if g.get("class") == "trial"]
    assert [float(g.get("data-rate", "")) for g in marks] == [t["rate_rps"] for t in FULL["trials"]]
    assert [g.get("data-ms") for g in marks] == ["12.0", "31.0", "None", "51.0", "33.0"]
    shapes = [next(e for e in g if e.tag in ("circle", "rect")).get("class") for g in marks]
    assert shapes == ["held", "held", "failed", "open", "held"]
    body = next(root.iter("tbody"))
    assert len(list(body)) == 5
    # Slower is higher, and an end that is not known goes to the frame.
    heights = [float(next(e for e in g if e.tag == "circle").get("cy", "")) for g in (marks[0], marks[1], marks[3])]
    assert heights[0] > heights[1] > heights[2]
    svg = next(root.iter("svg"))
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for line in svg.iter("line"):
        assert all(0 <= float(line.get(name, "nan")) <= width for name in ("x1", "x2"))
        assert all(0 <= float(line.get(name, "nan")) <= height for name in ("y1", "y2"))


def test_the_head_says_what_was_found_and_how_sure_it_is() -> None:
    words = " ".join("".join(next(parse(render(FULL)).iter("header")).itertext()).split())
    assert "p99<50ms: up to 40.0 requests/s" in words
    assert "44 was not shown to hold: because. The bracket is within 10%. Confirmed by a second trial." in words
    assert "95% confidence · 5 trials, 120 s · the generator alone: 9000/s" in words
    none = render(result(trial(10, None, False), held_rps=None, failed_rps=10.0, confirmed=False))
    assert "no rate was shown to meet it" in none
    assert "above" not in "".join(next(parse(none).iter("header")).itertext()), "there is no rate for it to be above"
    once = render(result(trial(10, 12.0, True), trial(10, 80.0, None), held_rps=None, failed_rps=10.0, confirmed=False))
    assert "10.0/s held once, and not when it was tried again. The bracket" in once
    late = render(result(trial(44, 80.0, None, reason="the generator was late: schedule lag p99 9.0 ms")))
    assert "At 44 the generator was late: schedule lag p99 9.0 ms, so the door may do more." in late
    assert "Not confirmed" in render(result(trial(40, 30.0, True), confirmed=False))


def test_nothing_tried_and_hostile_names_are_a_page_too(tmp_path: Path) -> None:
    parse(render(result(held_rps=None, failed_rps=None)))
    page = render(result(trial(40, 30.0, True, reason=HOSTILE), url=HOSTILE, task=HOSTILE, because=HOSTILE))
    assert list(parse(page).iter("script")) == []
    write(FULL, tmp_path / "deep" / "knee.html")
    assert (tmp_path / "deep" / "knee.html").read_text(encoding="utf-8") == render(FULL)
