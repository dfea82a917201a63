"""What experiments conclude, from cells whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Conclusion
from loadgen.figures.experiments import TABLE, e1, e2, e3, e4, e5, e6, e7, e8
from loadgen.figures.figure import Beside, Step
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
    assert "5.00 [4.34, 5.76] times from 'a step' to 'a step'" in conclusion.says
    # A step over itself is 1, around which no interval is.
    assert conclusion.rows[0][4] == "1.00"
    assert _held(conclusion, "twice") is True
    assert "alone could be measured" in e1.conclude(ladder[:1]).says


@pytest.mark.parametrize(("rps", "held"), [(15, False), (19, None), (21, None), (30, True)])
def test_e1_does_not_say_what_its_intervals_do_not(tmp_path: Path, rps: float, held: bool | None) -> None:
    # Given 10 images/s and more, each within 10 %; then twice as many are told only where the quotient's interval does
    assert _held(e1.conclude([cell(tmp_path, {}, rps=10), cell(tmp_path, {}, rps=rps)]), "twice") is held


def _model(folder: Path, gflops: float, decode: int, infer: int) -> Cell:
    ms = 1_000_000
    return cell(folder, {"gflops": gflops, "device": "CPU"}, requests=[(0, decode * ms, infer * ms)] * 30)


def test_e2_says_the_share_of_all_that_is_not_the_network_above_10_gflops(tmp_path: Path) -> None:
    cells = [_model(tmp_path, 35, 20, 80), _model(tmp_path, 1, 70, 30), _model(tmp_path, 20, 40, 60)]
    conclusion = e2.conclude(cells)
    assert "20% to 40% above 10 GFLOPs" in conclusion.says
    assert _held(conclusion, "computes most") is True
    assert [row[1] for row in conclusion.rows] == ["1", "20", "35"]
    assert [row[3][:5] for row in conclusion.rows] == ["30.00", "60.00", "80.00"]


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


def test_e3_counts_processing_and_movement_and_neither_queues_nor_the_network(tmp_path: Path) -> None:
    # Given 10 % each of queueing and decoding, 20 % of the network, and 60 % on the way
    ways = {"serialize@preprocess_ns": 10, "transit@preprocess>inference_ns": 30, "upload@inference_ns": 20}
    one = cell(tmp_path, {"device": "CPU"}, requests=[(10, 10, 20)] * 30, others=ways)
    # When
    row = _row(e3.conclude([one]), images="medium")
    # Then
    assert row["processing and movement"].startswith("70.0%")
    shares = [row[name] for name in ("preprocessing", "serialization", "movement", "transfer", "queueing", "inference")]
    assert shares == ["10.0%", "10.0%", "30.0%", "20.0%", "10.0%", "20.0%"]
    assert row["model"] == one.step.model


def test_e4_predicts_the_knee_from_one_alone_and_the_most_that_passes(tmp_path: Path) -> None:
    # Given 10 ms alone, and 400 images/s at the most; then 4 in flight fill the pipe (Denning and Buzen)
    cells = [
        cell(tmp_path, {"device": "CPU"}, schedule="closed(1)", rps=100, mean_ms=10),
        cell(tmp_path, {"device": "CPU"}, schedule="closed(16)", rps=400, mean_ms=40, requests=[(75, 20, 5)] * 30),
    ]
    conclusion = e4.conclude(cells)
    assert "knee at 4.0 [3.5, 4.6]; at 16 in flight 75% [75%, 75%] of the latency is in queues" in conclusion.says
    # and Little's law is tried on each cell
    assert _held(conclusion, "Little") is True
    wrong = cell(tmp_path, {"device": "CPU"}, schedule="closed(8)", rps=400, mean_ms=21.2)
    [check] = e4.conclude([*cells, wrong]).checks
    assert check.held is False
    assert "(not at 8 in flight 1.060)" in check.what


def test_e4_has_what_waits_outside_of_queues_as_well(tmp_path: Path) -> None:
    # Given 10 ms alone, and 40 ms at 16 in flight, of which no queue shows any: computations wait for CPUs
    cells = [
        cell(tmp_path, {"device": "CPU"}, schedule="closed(1)", rps=100, mean_ms=10),
        cell(tmp_path, {"device": "CPU"}, schedule="closed(16)", rps=400, mean_ms=40, requests=[(0, 30, 10)] * 30),
    ]
    conclusion = e4.conclude(cells)
    # Then three quarters are beyond what one alone takes
    assert "0% [0%, 0%] of the latency is in queues, 75% [71%, 78%] is beyond" in conclusion.says
    assert [row[8][:5] for row in conclusion.rows] == ["-", "75.0%"]


def test_e4_has_percentiles_where_enough_was_measured_to_have_them(tmp_path: Path) -> None:
    one = cell(tmp_path, {"device": "CPU"}, p95_ms=17)
    row = _row(e4.conclude([one]), transport="grpc")
    assert (row["mean ms"], row["p95 ms"], row["p99 ms"]) == ("10.0 [9.0, 11.0]", "17.0", "-")


_BESIDE = Beside("preprocessing alone", ("fused", "grpc"), "nothing")


def _stages(
    folder: Path,
    end_to_end: float,
    verdict: str = "VALID",
    *,
    size: str = "medium",
    device: str = "20 ms",
    preprocessing: float = 200,
    inference: float = 50,
    inference_cpus: int = 0,
) -> list[Cell]:
    """Of one device and size, all within 2 %: both stages alone, preprocessing without a hop at 250, and both."""
    step = Step(
        device,
        ("fused", "grpc"),
        at={"device": device},
        engines={"inference alone": "grpc"},
        beside=(_BESIDE,),
        inference_cpus=inference_cpus,
    )

    def one(target: str, rps: float, **more: Any) -> Cell:
        return cell(folder, {}, target=target, size=size, rps=rps, spread=0.02, step=step, **more)

    cpu = {"client": 1.0, "preprocess": 9.0, "inference": 5.0}
    return [
        one("preprocessing alone, grpc", preprocessing, verdict=verdict),
        one("preprocessing alone, fused", 250),
        one("inference alone", inference),
        one("grpc", end_to_end, cpu_ms=cpu),
    ]


def test_e5_holds_end_to_end_against_the_slower_stage(tmp_path: Path) -> None:
    conclusion = e5.conclude(_stages(tmp_path, 48))
    assert _held(conclusion, "at least 0.9") is True
    row = _row(conclusion, images="medium")
    assert row["over the slower stage"].startswith("0.96")
    # What the hop takes from preprocessing is beside it
    assert row["of what it does without a hop"].startswith("0.80")
    assert _held(e5.conclude(_stages(tmp_path, 40)), "at least 0.9") is False
    # of 0.91 within 3 % the data do not say
    assert _held(e5.conclude(_stages(tmp_path, 45.5)), "at least 0.9") is None
    assert "4% [1%, 7%] lost" in conclusion.says
    assert "nothing lost" in e5.conclude(_stages(tmp_path, 51)).says
    assert list(conclusion.pictures) == ["e5-20-ms"]


def test_e5_has_a_row_that_is_as_good_as_the_least_good_of_its_parts(tmp_path: Path) -> None:
    # Given a preprocessing alone that was contended; then what is set beside it is as well
    [row] = e5.conclude(_stages(tmp_path, 48, "CONTENDED")).rows
    assert row[-2:] == ["EMULATED", "CONTENDED"]
    [row] = e5.conclude(_stages(tmp_path, 48)).rows
    assert row[-2:] == ["EMULATED", "VALID"]


def test_e5_says_how_busy_each_side_was_of_the_cpus_that_it_has(tmp_path: Path) -> None:
    # Given 10 CPU-ms of door and generator, and 5 of inference, per image, at 40 images/s on 2 CPUs
    for own, said in ((0, "0.6 of 2"), (1, "0.4 of 1, inference 0.2 of 1")):
        row = _row(e5.conclude(_stages(tmp_path, 40, inference_cpus=own)), images="medium")
        assert row["CPUs busy"] == said


def test_e5_sets_each_size_and_device_beside_its_own_stages(tmp_path: Path) -> None:
    # Given two sizes and two devices, of which all numbers are others
    cells = [
        one
        for device, inference, small, large in (("slow", 50, 40, 9), ("fast", 200, 100, 5))
        for size, preprocessing, rps in (("small", 300, small), ("large", 10, large))
        for one in _stages(tmp_path, rps, size=size, device=device, preprocessing=preprocessing, inference=inference)
    ]
    # When
    conclusion = e5.conclude(cells)
    # Then
    quotients = {
        (row[0], row[1]): (row[conclusion.head.index("over inference")][:4], row[8][:4]) for row in conclusion.rows
    }
    assert conclusion.head[8] == "over the slower stage"
    assert quotients == {
        ("slow", "small"): ("0.80", "0.80"),
        ("slow", "large"): ("0.18", "0.90"),
        ("fast", "small"): ("0.50", "0.50"),
        ("fast", "large"): ("0.03", "0.50"),
    }
    assert set(conclusion.data) == {"slow", "fast"}


def test_e5_says_the_loss_of_the_transport_that_loses_least(tmp_path: Path) -> None:
    cells = _stages(tmp_path, 20)
    fused = cell(tmp_path, {}, target="fused", rps=40, spread=0.02, step=cells[0].step)
    conclusion = e5.conclude([*cells, fused])
    assert "20% [18%, 22%] lost (fused)" in conclusion.says
    # Where there is no hop, it takes nothing
    assert _row(conclusion, transport="fused")["of what it does without a hop"] == "-"


def test_e5_leaves_out_what_was_measured_in_part_only(tmp_path: Path) -> None:
    for absent in ("inference alone", "preprocessing alone, grpc", "grpc"):
        cells = [one for one in _stages(tmp_path, 48) if one.target != absent]
        assert "could" in e5.conclude(cells).says


def test_e6_sets_each_way_of_preprocessing_beside_the_first(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, {"preprocessing": name}, size="large", schedule=schedule, rps=rps)
        for name, schedule, rps in (("whole", "closed(1)", 5), ("whole", "closed(4)", 10), ("small", "closed(4)", 30))
    ]
    conclusion = e6.conclude(cells)
    assert "small over whole: 3.00" in conclusion.says
    # A large image is 3564 x 2880 of 3 bytes: 29.4 MiB, each.
    assert [row[4] for row in conclusion.rows] == ["29", "117", "117"]


def test_e7_without_a_meter_has_cpu_time_and_says_so_without_the_generators(tmp_path: Path) -> None:
    conclusion = e7.conclude([cell(tmp_path, {}, cpu_ms={"client": 50, "door": 7, "inference": 3})])
    assert conclusion.rows[0][2] == "10.00"
    assert "10 CPU-ms" in conclusion.says
    assert "proxy" in conclusion.pictures["e7"]


def test_e7_has_the_interval_of_its_rounds_where_they_are_enough(tmp_path: Path) -> None:
    # Given rounds in which the services took 9, 10 and 11 ms; the generator's own time is as wild as it likes
    rounds = [{"client": ms, "door": ms - 2, "inference": 2} for ms in (9.0, 10.0, 11.0)]
    whole = {"client": 50.0, "door": 8.0, "inference": 2.0}
    for given, printed in ((rounds, "10.00 [7.52, 12.48]"), (rounds[:2], "10.00")):
        # Then Student's t at two degrees of freedom: 10 +- 4.303 / sqrt(3)
        [row] = e7.conclude([cell(tmp_path, {}, cpu_ms=whole, rounds_cpu_ms=given)]).rows
        assert row[2] == printed


def test_e7_with_meters_has_joules(tmp_path: Path) -> None:
    energy = [{"meter": "cpu package-0", "j_per_request": 0.5}, {"meter": "gpu 0", "j_per_request": 1.5}]
    conclusion = e7.conclude([cell(tmp_path, {}, energy=energy)])
    assert "2 J" in conclusion.says
    assert "proxy" not in conclusion.pictures["e7"]


def test_e7_does_not_set_joules_beside_cpu_time(tmp_path: Path) -> None:
    # Given one run with a meter, and one without; then only what both have is drawn
    energy = [{"meter": "cpu package-0", "j_per_request": 0.5}]
    both = [cell(tmp_path, {}, energy=energy), cell(tmp_path, {}, target="fused", cpu_ms={"client": 1, "door": 3})]
    conclusion = e7.conclude(both)
    assert "proxy" in conclusion.pictures["e7"]
    assert " J" not in conclusion.says


def _devices(folder: Path, rates: dict[int, float]) -> list[Cell]:
    alone = cell(folder, {"stage": "preprocessing"}, rps=100, spread=0.01)
    return [alone, *(cell(folder, {"devices": n}, rps=rps, spread=0.01) for n, rps in rates.items())]


def test_e8_devices_scale_until_preprocessing_caps_them(tmp_path: Path) -> None:
    conclusion = e8.conclude(_devices(tmp_path, {4: 95, 1: 40, 2: 80}))
    assert conclusion.says.startswith("By preprocessing alone these CPUs feed 2.5")
    assert "the most that was reached is 2.4 [2.3, 2.4] times one device, with 4." in conclusion.says
    assert [row[0] for row in conclusion.rows] == ["preprocessing alone", "1", "2", "4"]
    assert _row(conclusion, devices="4")["min(n I, P)"] == "100.0"
    assert _row(conclusion, devices="4")["efficiency"].startswith("0.59 [")
    assert _held(conclusion, "no point") is True
    assert _held(e8.conclude(_devices(tmp_path, {1: 40, 4: 60})), "no point") is False


def test_e8_sees_more_than_preprocessing_alone_was_said_to_give(tmp_path: Path) -> None:
    # Given 100 images/s of preprocessing alone, and 130 end to end; then that bound was none
    conclusion = e8.conclude(_devices(tmp_path, {1: 40, 4: 130, 6: 90}))
    assert _held(conclusion, "above min(n I, P) (with 4 it is)") is False
    assert "; 6 of them give 2.2" in conclusion.says
