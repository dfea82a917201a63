"""What experiments conclude, from cells whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Conclusion
from loadgen.figures.experiments import TABLE, e1, e2, e3, e4, e5, e6, e7, e8
from tests.figures import cell


def _held(conclusion: Conclusion, what: str) -> bool | None:
    [check] = [check for check in conclusion.checks if what in check.what]
    return check.held


def _row(conclusion: Conclusion, **where: str) -> dict[str, str]:
    rows = [dict(zip(conclusion.head, row, strict=True)) for row in conclusion.rows]
    [found] = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return found


@pytest.mark.parametrize("conclude", TABLE.values(), ids=TABLE)
def test_without_numbers_nothing_is_concluded(conclude: object) -> None:
    assert callable(conclude)
    conclusion = conclude([])
    assert "could" in conclusion.says
    assert not conclusion.rows
    assert not conclusion.pictures


def test_e1_gains_are_over_the_step_before_and_over_the_first(tmp_path: Path) -> None:
    # Given three steps of 10, 20 and 50 images/s
    ladder = [cell(tmp_path, {}, rps=rps) for rps in (10, 20, 50)]
    # When
    conclusion = e1.conclude(ladder)
    # Then
    assert [row[3][:4] for row in conclusion.rows] == ["", "2.00", "2.50"]
    assert [row[4][:4] for row in conclusion.rows] == ["1.00", "2.00", "5.00"]
    assert _held(conclusion, "twice") is True
    assert _held(e1.conclude(ladder[:1]), "twice") is False


def _model(folder: Path, gflops: float, decode: int, infer: int) -> Cell:
    return cell(folder, {"gflops": gflops, "device": "CPU"}, requests=[(0, decode, infer)] * 30)


def test_e2_says_the_share_of_all_that_is_not_the_network_above_10_gflops(tmp_path: Path) -> None:
    cells = [_model(tmp_path, 35, 20, 80), _model(tmp_path, 1, 70, 30), _model(tmp_path, 20, 40, 60)]
    conclusion = e2.conclude(cells)
    assert "20% to 40% above 10 GFLOPs" in conclusion.says
    assert _held(conclusion, "largest model") is True
    assert [row[1] for row in conclusion.rows] == ["1", "20", "35"]


@pytest.mark.parametrize(("large", "rises"), [(90, True), (10, False)])
def test_e3_sees_whether_shares_rise_from_size_to_size(tmp_path: Path, large: int, rises: bool) -> None:
    decodes = {"small": 20, "medium": 50, "large": large}
    cells = [
        cell(tmp_path, {"device": "CPU"}, size=size, requests=[(0, part, 100 - part)] * 30)
        for size, part in decodes.items()
    ]
    conclusion = e3.conclude(cells)
    assert _held(conclusion, "rises") is rises
    assert _row(conclusion, images="medium")["processing and movement"].startswith("50.0%")
    assert "e3-cpu" in conclusion.pictures


def test_e4_predicts_the_knee_from_one_alone_and_the_most_that_passes(tmp_path: Path) -> None:
    # Given 10 ms alone, and 400 images/s at the most; then 4 in flight fill the pipe (Denning and Buzen)
    cells = [
        cell(tmp_path, {"device": "CPU"}, schedule="closed(1)", rps=100, mean_ms=10),
        cell(tmp_path, {"device": "CPU"}, schedule="closed(16)", rps=400, mean_ms=40, requests=[(75, 20, 5)] * 30),
    ]
    conclusion = e4.conclude(cells)
    assert "knee at 4.0, 75% [75%, 75%] queueing at 16 in flight" in conclusion.says
    # and Little's law is tried on each cell
    assert _held(conclusion, "16 in flight") is True
    wrong = cell(tmp_path, {"device": "CPU"}, schedule="closed(8)", rps=400, mean_ms=40)
    assert _held(e4.conclude([*cells, wrong]), "8 in flight: ") is False


def _stages(folder: Path, end_to_end: float, cpu_ms: float = 10.0) -> list[Cell]:
    device = {"device": "20 ms"}
    return [
        cell(folder, {"stage": "preprocessing"}, rps=200),
        cell(folder, {"stage": "inference"} | device, rps=50),
        cell(folder, {"stage": "end to end"} | device, rps=end_to_end, cpu_ms={"client": 1, "door": cpu_ms}),
    ]


def test_e5_holds_end_to_end_against_the_slower_stage(tmp_path: Path) -> None:
    conclusion = e5.conclude(_stages(tmp_path, 48))
    assert _held(conclusion, "at least 0.9") is True
    assert _row(conclusion, images="medium")["over the slower stage"].startswith("0.96")
    assert _held(e5.conclude(_stages(tmp_path, 40)), "at least 0.9") is False
    assert list(conclusion.pictures) == ["e5-20-ms"]


def test_e5_says_where_stages_share_cpus_that_they_had_alone(tmp_path: Path) -> None:
    # Given 100 CPU-ms per image, which at 50 images/s are 5 CPUs, of 2
    [check] = e5.conclude(_stages(tmp_path, 20, cpu_ms=100)).checks
    assert "they would want 5.0 of 2 CPUs" in check.what or "they would want 5.1 of 2 CPUs" in check.what
    assert check.held is False


def test_e6_sets_each_way_of_preprocessing_beside_the_first(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, {"preprocessing": name}, size="large", schedule=schedule, rps=rps)
        for name, schedule, rps in (("whole", "closed(1)", 5), ("whole", "closed(4)", 10), ("small", "closed(4)", 30))
    ]
    assert "small over whole: 3.00" in e6.conclude(cells).says


def test_e7_without_a_meter_has_cpu_time_and_says_so_without_the_generators(tmp_path: Path) -> None:
    conclusion = e7.conclude([cell(tmp_path, {}, cpu_ms={"client": 50, "door": 7, "inference": 3})])
    assert conclusion.rows[0][2] == "10.00"
    assert "10 CPU-ms" in conclusion.says
    assert "proxy" in conclusion.pictures["e7"]


def test_e7_with_meters_has_joules(tmp_path: Path) -> None:
    energy = [{"meter": "cpu package-0", "j_per_request": 0.5}, {"meter": "gpu 0", "j_per_request": 1.5}]
    conclusion = e7.conclude([cell(tmp_path, {}, energy=energy)])
    assert "2 J" in conclusion.says
    assert "proxy" not in conclusion.pictures["e7"]


def _devices(folder: Path, rates: dict[int, float]) -> list[Cell]:
    alone = cell(folder, {"stage": "preprocessing"}, rps=100)
    return [alone, *(cell(folder, {"devices": n}, rps=rps) for n, rps in rates.items())]


def test_e8_devices_scale_until_preprocessing_caps_them(tmp_path: Path) -> None:
    conclusion = e8.conclude(_devices(tmp_path, {4: 95, 1: 40, 2: 80}))
    assert conclusion.says.startswith("These CPUs feed 2.5")
    assert [row[0] for row in conclusion.rows] == ["1", "2", "4"]
    assert _row(conclusion, devices="4")["min(n I, P)"] == "100.0"
    assert _held(conclusion, "no point") is True
    assert _held(e8.conclude(_devices(tmp_path, {1: 40, 4: 60})), "no point") is False
