"""The terminal's table: aligned, its columns add up as printed, and what was not measured is no number."""

from __future__ import annotations

import re

import pytest

from loadgen.analysis import ROWS
from loadgen.table import answers, generator, tables
from tests.runs import measured, not_run, run

CELLS = (measured("fused"), measured("grpc", inner=0.6), not_run("kafka", "the broker is away"))


def rows(text: str) -> dict[str, list[str]]:
    """The Markdown table's rows by name."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|-")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_columns_align_and_markdown_reads_it() -> None:
    text = tables(run(*CELLS))
    title, empty, head, rule, *body = text.splitlines()
    assert title == "medium images, 1 in flight (closed(1))"
    assert empty == ""
    table = [head, rule, *(line for line in body if line.startswith("|"))]
    assert len({len(line) for line in table}) == 1
    bars = [[m.start() for m in re.finditer(r"\|", line)] for line in table]
    assert all(positions == bars[0] for positions in bars)
    assert re.fullmatch(r"\|-+\|(-+:\|){3}", rule)
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["mean ms (share)", "fused", "grpc", "kafka"]


def test_what_a_dash_means_is_said_where_there_is_one() -> None:
    legend = "- is what is not known: it was not measured, or so few requests cannot tell it."
    assert tables(run(*CELLS)).splitlines()[-1] == legend
    # An interval that so few requests cannot bound has one, too
    cell = measured("fused", requests=700)
    assert legend not in tables(run(cell))
    cell["intervals"]["p99"]["high_ms"] = None
    assert legend in tables(run(cell))
    # and a minus is none
    cell["intervals"]["p99"]["high_ms"] = 9.0
    cell["groups"][1]["mean_ms"] = -3.0
    assert legend not in tables(run(cell))


def test_a_cut_in_several_rounds_says_in_how_many() -> None:
    cell = measured("fused", requests=300)
    rounds = [
        {"round": n, "requests": gone, "before_due_ns": None, "sought": True} for n, gone in enumerate((20, 0, 15))
    ]
    cell["warmup_cut"] = {"requests": 35, "seconds": 1.25, "rounds": rounds}
    assert rows(tables(run(cell)))["warm-up cut"] == ["35 (1.2 s, in 2 of 3 rounds)"]


def test_shares_and_milliseconds_add_up_as_printed() -> None:
    found = rows(tables(run(*CELLS)))
    for column in (0, 1):
        pairs = [re.fullmatch(r"(-?[\d.]+) \( *(-?[\d.]+) %\)", found[row][column]) for row in ROWS if row in found]
        values = [(float(p[1]), float(p[2])) for p in pairs if p]
        total = re.fullmatch(r"([\d.]+) \(100\.0 %\)", found["total"][column])
        assert total
        assert sum(ms for ms, _ in values) == pytest.approx(float(total[1]))
        assert sum(share for _, share in values) == pytest.approx(100.0)


def test_the_numbers_are_the_runs() -> None:
    found = rows(tables(run(*CELLS)))
    cell = CELLS[1]
    rate = cell["intervals"]["throughput"]
    assert found["requests/s [95 %]"][1] == (
        f"{cell['throughput_rps']:.1f} [{rate['low_rps']:.1f}, {rate['high_rps']:.1f}]"
    )
    assert found["answered"][1] == "60 of 60"
    median = cell["intervals"]["p50"]
    assert found["p50 [95 %] ms"][1] == (
        f"{cell['latency_ms']['p50']:.2f} [{median['low_ms']:.2f}, {median['high_ms']:.2f}]"
    )
    assert found["p90 [95 %] ms"][1] == found["p99 [95 %] ms"][1] == "-"
    mean = cell["intervals"]["mean"]
    assert found["95 % interval"][1] == f"[{mean['low_ms']:.2f}, {mean['high_ms']:.2f}]"
    assert found["effective n (mean)"][1] == f"{mean['effective_n']:.0f} of 60"
    assert found["warm-up cut"][1] == found["drift"][1] == "too few to tell"
    assert found["CPU ms/request"][1] == "3.25"
    assert found["stalled"][1] == "0.0%"
    assert found["verdict"][:2] == ["VALID", "VALID"]


def test_what_was_not_measured_is_not_a_zero() -> None:
    text = tables(run(*CELLS))
    column = [row[2] for name, row in rows(text).items() if name != "mean ms (share)"]
    assert set(column) == {"NOT RUN", "-"}
    assert "kafka: the broker is away" in text.splitlines()
    # Too few for a median is said too.
    found = rows(tables(run(measured("fused", requests=5))))
    assert found["p50 [95 %] ms"] == ["-"]


def test_what_was_cut_and_whether_it_drifted_is_said() -> None:
    cell = measured("fused", requests=300)
    found = rows(tables(run(cell)))
    assert found["warm-up cut"] == ["none"]
    assert found["drift"] == [f"{cell['drift']['change_ms']:+.2f} ms (p {cell['drift']['p']:.2g})"]
    cell["warmup_cut"] = {"requests": 35, "seconds": 1.25}
    cell["intervals"]["p90"]["high_ms"] = None
    found = rows(tables(run({**cell, "offered_rps": 50.0, "dropped": 4})))
    assert found["warm-up cut"] == ["35 (1.2 s)"]
    assert found["p90 [95 %] ms"][0].endswith(", -]")
    assert found["offered requests/s"] == ["50.0"]
    assert found["dropped frames"] == ["4"]


def test_a_run_from_before_there_were_intervals_still_has_its_table() -> None:
    cell = measured("fused")
    old = {k: v for k, v in cell.items() if k not in ("intervals", "counted", "drift", "warmup_cut")}
    found = rows(tables(run(old)))
    assert found["p50 [95 %] ms"] == [f"{cell['latency_ms']['p50']:.2f}"]
    assert found["effective n (mean)"] == ["-"]


def test_a_run_without_an_answer_has_its_counts_and_reasons() -> None:
    text = tables(run(measured("fused", failed=60)))
    found = rows(text)
    assert found["answered"] == ["0 of 60"]
    assert found["verdict"] == ["INVALID"]
    assert found["total"] == ["-"]
    assert "fused: no request was answered" in text
    assert "fused: errors: 60 unavailable" in text


def test_emulated_is_said_at_the_head() -> None:
    found = rows(tables(run(measured("fused"), measured("grpc", emulated=True))))
    assert found["mean ms (share)"] == ["fused", "grpc EMULATED"]


def test_a_sum_that_is_wrong_is_shown_wrong() -> None:
    cell = measured("fused")
    cell["groups"] = cell["groups"][:-1]
    assert "(100.0 %)" not in "".join(rows(tables(run(cell)))["total"])


def test_one_table_per_size_and_load() -> None:
    text = tables(run(measured("fused"), measured("grpc"), measured("fused", size="large"), measured("grpc", load="x")))
    assert [line for line in text.splitlines() if " images, " in line] == [
        "medium images, 1 in flight (closed(1))",
        "large images, 1 in flight (closed(1))",
        "medium images, x (closed(1))",
    ]
    assert tables(run()) == ""


def test_answers_are_told_once_where_all_agree() -> None:
    said = [
        {"target": target, "sample": "coffee", "label": "espresso", "score": 0.956} for target in ("fused", "grpc")
    ] + [
        {"target": "fused", "sample": "chelsea", "label": "tiger cat", "score": 0.4},
        {"target": "grpc", "sample": "chelsea", "label": "tabby", "score": 0.4},
        {"target": "grpc", "sample": "china", "label": "palace", "score": 0.7},
    ]
    assert answers(run(answers=said)).splitlines() == [
        "coffee: espresso (0.96), says every target",
        "chelsea: tiger cat (0.40), says fused",
        "chelsea: tabby (0.40), says grpc",
        "china: palace (0.70), says grpc",
    ]
    assert answers(run()) == ""


def test_the_generators_own_ceiling_is_told_where_it_was_measured() -> None:
    assert "generator" not in tables(run(*CELLS))
    known = {"senders": 2, "ceiling_rps": 410.4, "ceilings_rps": {"medium": 9120.6, "large": 410.4}}
    said = tables(run(*CELLS, generator=known)).splitlines()[-1]
    assert said == "generator: 2 sender processes, to nobody 9121 medium images/s, 410 large images/s"
    alone = {"senders": 1, "ceiling_rps": 5.0, "ceilings_rps": {"own": 5.0}}
    assert generator(run(generator=alone)) == "1 sender, to nobody 5 own images/s"
