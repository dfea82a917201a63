"""The HTML page: well formed, of nothing but itself, and its numbers are the run's."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import report_html
from loadgen.report_html import headline, render
from loadgen.report_plots import Bar, Curve, Part, distribution, number, short_ms, stacked_bars, ticks, waterfall
from loadgen.target import HOP
from tests.exchanges import INNER
from tests.runs import measured, not_run, run

SVG = "svg"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def full() -> dict[str, Any]:
    """Two sizes, loads and labels of every kind."""
    return run(
        measured("fused"),
        measured("grpc", inner=0.6),
        measured("kafka", inner=1.9, slower=1.3),
        measured("fused", load="under load", schedule="closed(16)", requests=700),
        measured("grpc", load="under load", schedule="closed(16)", requests=700, inner=0.45),
        not_run("kafka", "the broker is away", load="under load"),
        measured("fused", size="large", schedule="poisson(4)"),
        measured("grpc", size="large", schedule="poisson(4)", inner=0.6, failed=7),
        measured("kafka", size="large", schedule="poisson(4)", inner=0.9, emulated=True),
        answers=[
            {"target": "fused", "sample": "coffee", "label": "espresso", "score": 0.956},
            {"target": "grpc", "sample": "coffee", "label": "espresso", "score": 0.956},
        ],
    )


def parse(page: str) -> ET.Element:
    """With a strict parser. The page says that it is HTML, which XML knows no document type of."""
    assert page.startswith("<!doctype html>\n")
    return ET.fromstring(page.removeprefix("<!doctype html>\n"))  # noqa: S314 # our own page


def text(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def sections(page: ET.Element) -> list[ET.Element]:
    return [s for s in page.iter("section") if s.get("class") == "cell"]


def table(element: ET.Element, kind: str) -> list[list[str]]:
    found = next((t for t in element.iter("table") if t.get("class") == kind), None)
    assert found is not None, f"no table {kind}"
    body = found.find("tbody")
    assert body is not None
    return [[text(cell) for cell in row] for row in body.iter("tr")]


def value(shown: str) -> float:
    return float(shown.removesuffix("%").replace("−", "-"))


# --- the page as such ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        full(),
        run(),
        run(not_run("kafka", "nothing answers")),
        run(measured("fused", failed=60)),
        run(measured("fused", requests=1)),
        run(measured("fused"), interrupted=True, notes=["grpc did not say"]),
        {"schema": "beyond-inference/run/1"},
    ],
    ids=["full", "empty", "not run", "no answer", "one request", "interrupted", "bare"],
)
def test_the_page_is_well_formed_and_refers_to_nothing_outside(content: dict[str, Any]) -> None:
    page = render(content)
    root = parse(page)
    for element in root.iter():
        assert element.tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        for name, reference in element.attrib.items():
            if name in ("href", "src", "action", "poster", "{http://www.w3.org/1999/xlink}href"):
                assert reference.startswith("#")
            assert "javascript:" not in reference
            assert not name.startswith("on")
    style = text(next(root.iter("style")))
    assert "@import" not in style
    assert re.findall(r"url\((?!#)", style) == []
    assert not re.search(r"fetch|XMLHttpRequest|import\(|https?:", text(next(root.iter("script"))))
    assert "nan" not in text(next(root.iter("main"))).lower().split()


def test_links_within_the_page_lead_somewhere() -> None:
    root = parse(render(full()))
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    links = [a.get("href", "") for a in root.iter("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(names)


HOSTILE = '</script><script>alert("x")</script> & \' <b>\x00\x1f\ud800\ufffe'


def test_hostile_names_are_text() -> None:
    content = run(
        {**measured("fused"), "target": HOSTILE, "load": HOSTILE, "size": HOSTILE, "schedule": HOSTILE},
        not_run(HOSTILE + "2", HOSTILE),
        name=HOSTILE,
        notes=[HOSTILE],
        environment={"cpu": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}},
        plan={HOSTILE: [HOSTILE]},
        answers=[{"target": HOSTILE, "sample": HOSTILE, "label": HOSTILE, "score": 0.5}],
    )
    cell = content["cells"][0]
    cell["reasons"] = [HOSTILE]
    cell["errors"] = {HOSTILE: 1}
    for stage in cell["stages"]:
        stage["where"] = HOSTILE
    cell["exemplars"]["median"]["id"] = HOSTILE
    cell["contention"] = {"processes": [{"name": HOSTILE, "cpu_ms_per_request": 1, "run_delay_ms_per_request": 1}]}
    cell["calibration"][0]["hop"] = HOSTILE
    page = render(content)
    page.encode("utf-8")  # a lone surrogate could not be written
    root = parse(page)
    assert len(list(root.iter("script"))) == 1
    assert "alert" not in text(next(root.iter("script")))
    assert 'alert("x")' in text(next(root.iter("main")))


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.html"
    report_html.write(full(), path)
    assert path.read_text(encoding="utf-8") == render(full())
    before = path.read_text(encoding="utf-8")

    def no_room(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    for step in ("write_bytes", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, step, no_room)
            with pytest.raises(OSError, match="No space"):
                report_html.write(run(), path)
        assert path.read_text(encoding="utf-8") == before
        assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_page_of_a_run_that_was_read_from_its_file_is_the_same() -> None:
    assert render(json.loads(json.dumps(full()))) == render(full())


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_groups_are_the_runs_and_add_up_as_printed() -> None:
    content = full()
    by_key = [list(cells) for _, cells in itertools.groupby(content["cells"], lambda c: (c["size"], c["load"]))]
    shown = sections(parse(render(content)))
    assert len(shown) == len(by_key) == 3
    for section, cells in zip(shown, by_key, strict=True):
        rows = {row[0]: row[1:] for row in table(section, "groups")}
        for index, cell in enumerate(cells):
            if "groups" not in cell:
                continue
            ms, shares = 0.0, 0.0
            for group in cell["groups"]:
                at = rows[group["group"]][2 * index : 2 * index + 2]
                assert value(at[0]) == pytest.approx(group["mean_ms"], abs=0.0101)
                assert value(at[1]) == pytest.approx(group["share"] * 100, abs=0.101)
                ms, shares = ms + value(at[0]), shares + value(at[1])
            total = rows["total (mean)"][2 * index : 2 * index + 2]
            assert value(total[0]) == pytest.approx(cell["latency_ms"]["mean"], abs=0.00501)
            assert ms == pytest.approx(value(total[0]), abs=1e-9)
            assert total[1] == "100.0 %"
            assert shares == pytest.approx(100.0, abs=1e-9)
            assert rows["requests/s"][index] == f"{cell['throughput_rps']:.1f}"
            assert rows["answered"][index] == f"{cell['ok']} of {cell['requests']}"


def test_every_bar_is_as_long_as_its_parts_and_its_target() -> None:
    content = full()
    scale: set[float] = set()
    bars = [g for g in sections(parse(render(content)))[0].iter("g") if g.get("class") == "bar"]
    assert [bar.get("data-target") for bar in bars] == ["fused", "grpc", "kafka"]
    for bar, cell in zip(bars, content["cells"], strict=False):
        parts = [rect for rect in bar.iter("rect") if rect.get("data-ms")]
        assert [rect.get("data-stage") for rect in parts] == [stage["stage"] for stage in cell["stages"]]
        for rect, stage in zip(parts, cell["stages"], strict=True):
            assert float(rect.get("data-ms", "")) == stage["mean_ms"]
            if abs(stage["mean_ms"]) > 0.01:
                scale.add(round(float(rect.get("width", "")) / abs(stage["mean_ms"]), 1))
        assert sum(float(rect.get("data-ms", "")) for rect in parts) == pytest.approx(cell["latency_ms"]["mean"])
    assert max(scale) - min(scale) < 0.2  # one scale for all targets


def test_the_latency_table_has_the_runs_percentiles_and_says_where_there_are_too_few() -> None:
    content = full()
    first, second, _ = sections(parse(render(content)))
    cell = content["cells"][0]
    assert table(first, "latency")[0] == [
        "fused",
        *(number(cell["latency_ms"][n]) for n in ("mean", "p50")),
        *(["too few"] * 3),  # p90, p95, p99 of 60 requests
        number(cell["latency_ms"]["max"]),
    ]
    assert "too few" not in table(second, "latency")[0]
    assert "64 for p90, 130 for p95, 662 for p99" in text(first)


def test_every_interval_is_the_runs() -> None:
    content = full()
    # Given also one that so few requests cannot bound
    content["cells"][3]["intervals"]["p99"]["high_ms"] = None
    _, second, _ = sections(parse(render(content)))
    for index, cell in enumerate(content["cells"][3:5]):
        intervals = cell["intervals"]
        shown = table(second, "latency")[2 * index + 1]
        expected = ["95 % interval"]
        for name in ("mean", "p50", "p90", "p95", "p99"):
            low, high = intervals[name]["low_ms"], intervals[name]["high_ms"]
            expected.append(f"from {short_ms(low)}" if high is None else f"{short_ms(low)} to {short_ms(high)}")
        assert shown == [*expected, ""]
        rows = {row[0]: row[1:] for row in table(second, "groups") if row[0] != "95 % interval"}
        assert rows["effective n of the mean"][index] == f"{intervals['mean']['effective_n']:.0f} of 700"
        assert rows["warm-up cut"][index] == "none"
        assert rows["drift"][index].endswith(f"p {cell['drift']['p']:.2g}")
    rates = [row[1:] for row in table(second, "groups") if row[0] == "95 % interval"]
    rate = content["cells"][3]["intervals"]["throughput"]
    assert rates[0][0] == f"{number(rate['low_rps'], 1)} to {number(rate['high_rps'], 1)}"


def test_a_group_has_its_interval_and_a_difference_its_doubt() -> None:
    cells = [measured("fused", requests=300), measured("grpc", requests=300, inner=0.6)]
    page = render(run(*cells))
    for cell in cells:
        for group in cell["groups"]:
            assert f'title="95 % interval: {number(group["low_ms"], 3)} to {number(group["high_ms"], 3)} ms"' in page
    assert "hide that" not in page
    # Given two means whose intervals are wider than what is between them
    cells[1]["intervals"]["mean"] = {"low_ms": 5.0, "high_ms": 13.0, "effective_n": 3.0}
    assert "The intervals of both means hide that" in render(run(*cells))


def test_a_cut_a_drift_and_what_was_offered_are_told() -> None:
    cell = measured("fused", requests=300)
    cell.update(offered_rps=50.0, dropped=4, warmup_cut={"requests": 35, "seconds": 1.25})
    cell["drift"] = {"p": 0.0004, "change_ms": 2.5, "windows": 20}
    rows = {row[0]: row[1:] for row in table(sections(parse(render(run(cell))))[0], "groups")}
    assert rows["offered requests/s"] == ["50.0"]
    assert rows["dropped frames"] == ["4"]
    assert rows["warm-up cut"] == ["35 (1.2 s)"]
    assert rows["drift"] == ["+2.50 ms, p 0.0004"]


def test_a_page_of_a_run_from_before_there_were_intervals() -> None:
    new = ("intervals", "counted", "drift", "warmup_cut", "schedule_lag_ms")
    old = {name: value for name, value in measured("fused", requests=700).items() if name not in new}
    first = sections(parse(render(run(old))))[0]
    assert [row[0] for row in table(first, "latency")] == ["fused"]
    assert table(first, "latency")[0][2] == number(old["latency_ms"]["p50"])


def browse(page: Path) -> subprocess.CompletedProcess[str]:
    """Load it in a real browser; standard output is the document after its script ran, standard error has the log."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    options += [f"--user-data-dir={page.with_name('profile')}", "--virtual-time-budget=2000", "--dump-dom"]
    return subprocess.run(  # noqa: S603
        [str(CHROMIUM), *options, page.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_the_page_without_an_error_and_with_the_runs_figures(tmp_path: Path) -> None:
    content = full()
    path = tmp_path / "report.html"
    report_html.write(content, path)
    # When a real browser loads it, runs its script, and says what became of it
    shown = browse(path)
    # Then nothing was said on its console, which has every script error and every refused request
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    dom = shown.stdout
    assert dom.count('role="button"') == len(re.findall(r'<li data-group="[a-z]+" title', render(content))) > 0
    # and every bar has the figures of the JSON
    bars = re.findall(r'<g class="bar" data-target="([a-z]+)">(.*?)</g>', dom, re.DOTALL)
    assert [name for name, _ in bars][:3] == ["fused", "grpc", "kafka"]
    for cell, (name, drawn) in zip(content["cells"][:3], bars[:3], strict=True):
        assert cell["target"] == name
        parts = [float(ms) for ms in re.findall(r'data-ms="([-0-9.e]+)"', drawn)]
        assert parts == [stage["mean_ms"] for stage in cell["stages"]]
        assert sum(parts) == pytest.approx(cell["latency_ms"]["mean"])
    assert dom.count('class="curves"') == 3
    assert dom.count("<polyline") == sum(1 for cell in content["cells"] if cell.get("quantiles_ms"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_script_error_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text("<!doctype html><script>undefinedFunction()</script>", encoding="utf-8")
    assert "CONSOLE" in browse(page).stderr


def test_parts_of_one_name_say_what_they_came_after() -> None:
    cell = measured("grpc", inner=0.6)
    dispatch = {"stage": "dispatch", "where": "preprocess", "ms": 0.01, "cpu_ms": None}
    tiles = cell["exemplars"]["median"]["tiles"]
    tiles.insert(4, dispatch)
    tiles.insert(-2, dispatch)
    page = render(run(cell))
    assert "dispatch after decode @ preprocess" in page
    assert "dispatch after transit @ preprocess" in page
    assert ">dispatch @ preprocess<" not in page


def test_the_waterfall_of_a_request_adds_up_to_its_total() -> None:
    content = full()
    section = sections(parse(render(content)))[0]
    falls = [svg for svg in section.iter(SVG) if svg.get("class") == "fall"]
    assert len(falls) == 6  # the median and the slowest of three targets
    for svg, (cell, kind) in zip(falls, itertools.product(content["cells"][:3], ("median", "slowest")), strict=True):
        tiles = [float(g.get("data-ms", "")) for g in svg.iter("g") if g.get("class") == "tile"]
        assert sum(tiles) == pytest.approx(cell["exemplars"][kind]["total_ms"])


def test_a_hops_transit_is_one_row_with_its_floor_once() -> None:
    """A door reports when the rest of a request's bytes came in as transit; the floor is of all transit together."""
    cell = measured("fused")
    tiles = cell["exemplars"]["median"]["tiles"]
    tiles.insert(2, {"stage": "transit", "where": HOP, "ms": 0.1, "cpu_ms": None})
    rows = report_html._rows(cell["exemplars"]["median"], cell)
    transit = [row for row in rows if row[0].where == HOP]
    assert len(transit) == 1
    network, excess = transit[0]
    whole = sum(tile["ms"] for tile in tiles if tile["stage"] == "transit")
    assert (network.group, network.ms) == ("network", 0.3)
    assert (excess.group, excess.ms) == ("excess", pytest.approx(whole - 0.3))
    # Without a floor nothing is called network.
    cell["calibration"] = []
    (only,) = [row for row in report_html._rows(cell["exemplars"]["median"], cell) if row[0].where == HOP]
    assert [(part.group, part.ms) for part in only] == [("excess", pytest.approx(whole))]


def test_negative_excess_is_shown_signed_and_drawn_back() -> None:
    content = run(measured("fused"), measured("grpc", inner=0.45))  # its floor is 0.5
    root = parse(render(content))
    assert content["cells"][1]["groups"][5]["group"] == "excess"
    excess = [s for s in content["cells"][1]["stages"] if s["stage"] == "excess" and s["where"] == INNER]
    assert excess[0]["mean_ms"] < 0
    drawn = [r for r in root.iter("rect") if "negative" in r.get("class", "") and r.get("data-stage") == "excess"]
    assert float(drawn[0].get("data-ms", "")) == excess[0]["mean_ms"]
    assert float(drawn[0].get("width", "")) > 0


def test_the_tail_is_shown_where_there_is_one() -> None:
    content = full()
    first, second, _ = sections(parse(render(content)))
    assert "The tail" not in text(first)
    tail = content["cells"][3]["tail"]
    assert "The tail" in text(second)
    assert f"fused {short_ms(tail['mean_ms'])} ms" in text(second)
    assert f"{tail['requests']} requests" in text(second)


def test_contention_calibration_and_warm_up_are_told() -> None:
    first = sections(parse(render(full())))[0]
    contention = table(first, "contention")
    assert contention[:3] == [
        ["fused", "3.25", "0.30", "0.00", "12.5 %"],
        ["client", "0.50", "0.10", "", ""],
        ["preprocess", "2.75", "0.20", "", ""],
    ]
    calibration = table(first, "calibration")
    assert calibration[0] == ["fused", "warm after 3.2 s and 480 probes"]
    assert calibration[1] == [HOP, "0.300", "0.270 to 0.330", "40"]
    assert calibration[2][:2] == ["excess, median", "0.110"]
    assert [INNER, "0.500", "0.450 to 0.550", "40"] in calibration


# --- what must be said -----------------------------------------------------------------------------------------------


def test_labels_and_verdicts_are_said_wherever_a_number_stands() -> None:
    content = full()
    root = parse(render(content))
    glance = table(root, "glance")
    assert "NOT RUN" in glance[1][3]
    assert not re.search(r"\d", glance[1][3])
    assert "INVALID" in glance[2][2]
    assert "EMULATED" in glance[2][3]
    _, second, third = sections(root)
    assert "kafka NOT RUN the broker is away" in text(second)
    assert "no bar: there are no numbers" in text(second)
    assert "INVALID errors: 7 unavailable" in text(third)
    assert "kafka EMULATED" in text(third)
    assert [row[1:] for row in table(third, "groups") if row[0] == "errors"] == [["0", "7 unavailable", "0"]]


def test_what_was_not_measured_is_never_a_zero() -> None:
    content = run(measured("fused"), not_run("kafka", "away"), measured("grpc", failed=60))
    rows = {row[0]: row[1:] for row in table(sections(parse(render(content)))[0], "groups")}
    for name, row in rows.items():
        columns = row[2:4] if len(row) == 6 else row[1:2]  # kafka's
        assert "".join(columns) in ("–", ""), f"{name}: {columns}"
    assert rows["answered"][2] == "0 of 60"  # that was measured
    assert rows["requests/s"][2] == "–"


def test_an_empty_run_says_so() -> None:
    root = parse(render(run()))
    assert "This run has no cells." in text(root)
    assert sections(root) == []


def test_an_interrupted_run_and_its_notes_are_at_the_head() -> None:
    root = parse(render(run(measured("fused"), interrupted=True, notes=["grpc did not say what the photographs show"])))
    header = text(next(root.iter("header")))
    assert "The run was interrupted: what is missing was not measured." in header
    assert "grpc did not say what the photographs show" in header
    assert "interrupted" not in text(next(parse(render(full())).iter("header")))


def test_the_headline_is_from_the_data_alone() -> None:
    base, more = measured("fused"), measured("grpc", inner=0.6)
    mean, added = base["latency_ms"]["mean"], more["latency_ms"]["mean"] - base["latency_ms"]["mean"]
    said = f"fused {mean:.1f} ms; gRPC +{added:.1f} ms ({added / mean * 100:.0f} %)"
    assert headline("medium", "1 in flight", [more, base]) == f"Medium images, 1 in flight: {said}."
    invalid = {**more, "verdict": "INVALID"}
    # What is not usable has no number in a headline, and nothing is compared with it.
    assert headline("medium", "x", [base, invalid]) == f"Medium images, x: fused {mean:.1f} ms; gRPC [INVALID]."
    assert headline("medium", "x", [{**base, "verdict": "INVALID"}]) == "Medium images, x: no usable measurement."
    # A caveat that all share is said once.
    pair = [{**base, "verdict": "CONTENDED"}, {**more, "verdict": "CONTENDED"}]
    assert headline("medium", "1 in flight", pair) == f"Medium images, 1 in flight: {said} [all CONTENDED]."
    pair[1] = {**more, "label": "EMULATED"}
    assert "fused" in headline("medium", "x", pair)
    assert headline("medium", "x", pair).endswith("%) [EMULATED].")
    assert f"fused {mean:.1f} ms [CONTENDED]" in headline("medium", "x", pair)


def test_a_headline_states_no_difference_that_the_intervals_could_hide() -> None:
    base, more = measured("fused"), measured("grpc", inner=0.6)
    wide = {"low_ms": more["latency_ms"]["mean"] - 50, "high_ms": more["latency_ms"]["mean"] + 50, "effective_n": 4}
    hidden = {**more, "intervals": {**more["intervals"], "mean": wide}}
    assert "gRPC no difference shown (+" in headline("medium", "x", [base, hidden])
    assert "no difference" not in headline("medium", "x", [base, more])


def test_a_broker_is_set_beside_a_hop_without_one() -> None:
    cells = [measured("fused"), measured("grpc"), measured("kafka")]
    text = " ".join(" ".join(parse(render(run(*cells))).itertext()).split())
    assert text.count("beside fused:") == 2
    assert text.count("beside grpc:") == 1


def test_the_lead_says_what_is_not_the_model() -> None:
    cell = measured("fused")
    groups = {g["group"]: g["share"] for g in cell["groups"]}
    data = sum(groups.get(g, 0) for g in ("preprocessing", "serialization", "network", "excess", "transfer"))
    said = report_html.data_share([cell])
    waiting = groups.get("queueing", 0)
    assert said.startswith(
        f"Of the time, data processing and movement take {data * 100:.0f} % with fused; "
        f"waiting takes {waiting * 100:.0f} % with fused."
    )
    assert said.endswith(f"The model itself takes {groups['inference'] * 100:.0f} % with fused.")
    assert report_html.data_share([not_run("x", "y")]) == ""


def test_every_row_of_the_analysis_has_a_meaning_and_a_colour() -> None:
    page = render(full())
    for row in report_html.ROWS:
        assert row in report_html._MEANING
        assert f".g-{row}{{" in page


def test_a_cell_is_not_changed_by_being_shown() -> None:
    content = full()
    before = copy.deepcopy(content)
    render(content)
    assert content == before


# --- drawings --------------------------------------------------------------------------------------------------------

PARTS = st.lists(
    st.builds(
        Part,
        st.sampled_from(["decode", "infer"]),
        st.sampled_from(["preprocessing", "inference", "excess"]),
        st.just("here"),
        st.floats(-50, 500, allow_nan=False),
        st.one_of(st.none(), st.floats(0, 500)),
    ),
    min_size=1,
    max_size=8,
)


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_whatever_the_numbers_the_drawings_are_well_formed_and_within_their_frame(ledgers: list[list[Part]]) -> None:
    totals = [sum(part.ms for part in parts) for parts in ledgers]
    bars = [Bar(f"t{i}", "", parts, total, "") for i, (parts, total) in enumerate(zip(ledgers, totals, strict=True))]
    drawings = [
        stacked_bars(bars, "bars", max(totals)),
        *(waterfall([[part] for part in bar.parts], bar.total_ms, max(totals), "fall") for bar in bars),
        distribution([Curve("t", 0, sorted(abs(part.ms) for part in ledgers[0]))], "curves"),
    ]
    for drawing in drawings:
        svg = ET.fromstring(drawing)  # noqa: S314 # our own
        width, height = map(float, svg.get("viewBox", "").split()[2:])
        for rect in svg.iter("rect"):
            x, y, w, h = (float(rect.get(name, "nan")) for name in ("x", "y", "width", "height"))
            assert w >= 0
            assert h > 0
            assert 0 <= y <= y + h <= height
            if min(totals) > 0:
                assert x + w <= width + 1


@given(PARTS)
def test_what_is_written_beside_a_bar_is_beside_all_that_is_drawn_of_it(parts: list[Part]) -> None:
    total = sum(part.ms for part in parts)
    svg = ET.fromstring(stacked_bars([Bar("t", "", parts, total, "+1 ms")], "bars"))  # noqa: S314 # our own
    drawn = [float(rect.get("x", "nan")) + float(rect.get("width", "nan")) for rect in svg.iter("rect")]
    written = [float(t.get("x", "nan")) for t in svg.iter("text") if (t.get("class") or "").endswith("over")]
    assert len(written) == 2
    assert all(x >= max(drawn) + 4 for x in written)


def test_an_excess_below_zero_that_comes_last_does_not_run_into_the_total() -> None:
    parts = [Part("infer", "inference", "inference", 10.0), Part("excess", "excess", "client>preprocess", -4.0)]
    svg = ET.fromstring(stacked_bars([Bar("fused", "", parts, 6.0, "")], "bars"))  # noqa: S314 # our own
    infer = next(rect for rect in svg.iter("rect") if rect.get("data-stage") == "infer")
    (label,) = (t for t in svg.iter("text") if t.text == "6.00 ms")
    assert float(label.get("x", "0")) > float(infer.get("x", "nan")) + float(infer.get("width", "nan"))


@pytest.mark.parametrize(
    ("high", "wanted", "expected"),
    [(10, 5, [0, 2, 4, 6, 8, 10]), (0.7, 4, [0, 0.2, 0.4, 0.6]), (0, 5, [0]), (float("nan"), 5, [0])],
)
def test_ticks_are_round(high: float, wanted: int, expected: list[float]) -> None:
    assert ticks(high, wanted) == pytest.approx(expected)


def test_numbers_for_the_eye() -> None:
    assert number(-0.001) == "0.00"
    assert number(-1.5, 1) == "−1.5"
    assert number(None) == number(float("nan")) == "–"
    assert [short_ms(v) for v in (0.123, 9.99, 12.34, 123.4)] == ["0.12", "9.99", "12.3", "123"]
