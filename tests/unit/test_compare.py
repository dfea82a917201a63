"""Two runs side by side: pairs where there are some, intervals everywhere, and silence about what cannot be shown."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen.analysis import analyse
from loadgen.compare import compare, load, usable, words
from loadgen.errors import PlanError
from loadgen.experiment import Finished, save
from loadgen.statistics import student_quantile
from loadgen.target import Exchange
from tests.exchanges import walk
from tests.runs import run


def requests(
    target: str, n: int, seed: int, *, more: float = 0.0, spread: float = 0.05, first: int = 0
) -> list[Exchange]:
    """`n` requests of very different lengths, the same for all targets; `seed` is that of the noise of this target."""
    alike, own = random.Random(1), random.Random(seed)  # noqa: S311
    lengths = [alike.expovariate(0.1) for _ in range(first + n)][first:]
    return [
        walk(i, decode=2.0, infer=length + more + abs(own.gauss(0, spread)), due_ms=i * 100)._replace(
            id=f"{target}-medium-x-{i}"
        )
        for i, length in enumerate(lengths, first)
    ]


def stored(folder: Path, cells: dict[str, list[Exchange]], **more: Any) -> Path:
    told, kept = [], []
    for target, exchanges in cells.items():
        names = {"target": target, "size": "medium", "load": "x", "schedule": "closed(1)"}
        told.append({**names, **analyse(exchanges, (), {}, 1.0, False, closed=True)})
        kept += [({**names, "round": "0"}, exchange) for exchange in exchanges]
    save(Finished(run(*told, **more), kept), folder)
    return folder / "run.json"


def row(rows: Sequence[dict[str, Any]], of: str) -> dict[str, Any]:
    return next(r for r in rows if r.get("of", f"{r.get('stage')}@{r.get('where')}") == of)


def test_the_same_requests_are_compared_pair_by_pair(tmp_path: Path) -> None:
    # Given two runs of the same requests, of which the second takes 0.2 ms longer to infer
    a = load(stored(tmp_path / "a", {"grpc": requests("grpc", 700, 1)}))
    b = load(stored(tmp_path / "b", {"grpc": requests("grpc", 700, 2, more=0.2)}))
    (cell,) = compare(a, b)["cells"]
    # Then it is shown, though a request's own length is fifty times that
    assert cell["paired"]
    assert cell["requests"] == [700, 700]
    mean = row(cell["latency"], "mean")
    assert mean["shown"]
    assert 0.15 < mean["low_ms"] < 0.2 + 0.05 * 0.1
    assert mean["low_ms"] < mean["difference_ms"] < mean["high_ms"] < 0.25
    assert mean["difference_ms"] == pytest.approx(mean["b_ms"] - mean["a_ms"])
    assert [r["of"] for r in cell["latency"]] == ["mean", "p50", "p90", "p95", "p99"]
    # and so is where it comes from, and that nothing else differs
    assert row(cell["stages"], "infer@inference")["shown"]
    assert [s["stage"] for s in cell["stages"] if s["shown"]] == ["infer"]
    assert row(cell["stages"], "decode@preprocess")["difference_ms"] == 0


def test_the_intervals_of_stages_hold_all_together(tmp_path: Path) -> None:
    # Given two runs in which every stage that varies does so by chance, equally in both
    a, b = (load(stored(tmp_path / str(seed), {"grpc": requests("grpc", 240, seed, spread=1)})) for seed in (1, 2))
    (cell,) = compare(a, b)["cells"]
    # Then the chance of 5 % that any of them misses is shared out equally among all (Bonferroni)
    number = len(cell["stages"])
    assert number == len({(tile.stage, tile.where) for tile in walk().tiles})
    assert cell["stages_confidence_each"] == pytest.approx(1 - 0.05 / number, abs=1e-12)
    # so an interval is as much wider as Student's t at that confidence is larger than at 95 %
    wide, alone = row(cell["stages"], "infer@inference"), row(cell["latency"], "mean")
    degrees = 1.5 * (240 / 8 - 1)
    wider = student_quantile(1 - 0.025 / number, degrees) / student_quantile(0.975, degrees)
    assert wider > 1.4
    # (infer is all that differs between the two runs, so the mean's interval is infer's own at 95 %)
    assert wide["high_ms"] - wide["low_ms"] == pytest.approx(wider * (alone["high_ms"] - alone["low_ms"]), rel=1e-6)


def test_without_pairs_the_same_difference_cannot_be_shown(tmp_path: Path) -> None:
    a = load(stored(tmp_path / "a", {"grpc": requests("grpc", 300, 1)}))
    b = load(stored(tmp_path / "b", {"grpc": requests("grpc", 300, 2, more=0.2)}, seed=2))
    result = compare(a, b)
    (cell,) = result["cells"]
    assert not cell["paired"]
    assert cell["unpaired_because"] == "the seeds differ (1 and 2)"
    mean = row(cell["latency"], "mean")
    assert not mean["shown"]
    assert mean["low_ms"] < 0 < mean["high_ms"]
    assert "no difference can be shown" in words(result)
    assert "unpaired: the seeds differ (1 and 2)" in words(result)


def test_a_large_difference_shows_without_pairs(tmp_path: Path) -> None:
    a = load(stored(tmp_path / "a", {"grpc": requests("grpc", 300, 1)}))
    b = load(stored(tmp_path / "b", {"grpc": requests("grpc", 250, 2, more=20)}, samples={}))
    (cell,) = compare(a, b)["cells"]
    assert cell["unpaired_because"] == "the sample files differ"
    assert row(cell["latency"], "mean")["shown"]
    assert row(cell["latency"], "mean")["difference_ms"] == pytest.approx(20, abs=3)


def test_a_run_beside_itself_shows_no_difference(tmp_path: Path) -> None:
    side = load(stored(tmp_path, {"grpc": requests("grpc", 200, 1)}).parent)  # the folder will do
    (cell,) = compare(side, side)["cells"]
    assert not any(r["shown"] for r in [*cell["latency"], *cell["stages"]])
    assert all(r["difference_ms"] == 0 for r in cell["latency"])


def test_noise_alone_is_about_as_seldom_shown_as_it_should_be(tmp_path: Path) -> None:
    shown = 0
    for seed in range(20):
        a = load(stored(tmp_path / f"a{seed}", {"grpc": requests("grpc", 120, 2 * seed, spread=1)}))
        b = load(stored(tmp_path / f"b{seed}", {"grpc": requests("grpc", 120, 2 * seed + 1, spread=1)}))
        shown += row(compare(a, b)["cells"][0]["latency"], "mean")["shown"]
    assert shown <= 4


def test_two_targets_of_one_run(tmp_path: Path) -> None:
    side = load(stored(tmp_path, {"grpc": requests("grpc", 200, 1), "kafka": requests("kafka", 200, 2, more=3)}))
    result = compare(side, side, "grpc", "kafka")
    (cell,) = result["cells"]
    assert (cell["a"]["target"], cell["b"]["target"], cell["paired"]) == ("grpc", "kafka", True)
    assert row(cell["latency"], "mean")["difference_ms"] == pytest.approx(3, abs=0.1)
    assert "medium images, x, A grpc, B kafka: 200 requests, pair by pair" in words(result)
    # Without a choice, each is compared with itself.
    assert [c["a"]["target"] for c in compare(side, side)["cells"]] == ["grpc", "kafka"]


def test_failures_and_what_was_cut_off_have_no_pair(tmp_path: Path) -> None:
    answered = requests("grpc", 200, 1)
    failed = [e._replace(error="unavailable") if i % 4 == 0 else e for i, e in enumerate(answered)]
    a = load(stored(tmp_path / "a", {"grpc": answered}))
    b = load(stored(tmp_path / "b", {"grpc": failed}))
    result = compare(a, b)
    assert result["cells"][0]["requests"] == [150, 150]
    assert "B is INVALID" in words(result)
    assert not usable(result)
    assert usable(compare(a, a))
    # Given run.json says that the first fifty were warm-up
    content = json.loads((tmp_path / "a" / "run.json").read_text(encoding="utf-8"))
    content["cells"][0]["warmup_cut"] = {"requests": 50, "before_due_ns": answered[50].due_ns}
    (tmp_path / "a" / "run.json").write_text(json.dumps(content), encoding="utf-8")
    a = load(tmp_path / "a")
    assert compare(a, a)["cells"][0]["requests"] == [150, 150]


def test_each_round_has_its_own_warm_up_cut_off(tmp_path: Path) -> None:
    # Given two rounds of a hundred, of which the first ten and the first fifty were warm-up
    answered = requests("grpc", 200, 1)
    names = {"target": "grpc", "size": "medium", "load": "x", "schedule": "closed(1)"}
    cell = {**names, **analyse(answered, (), {}, 1.0, False, closed=True)}
    before = [answered[10].due_ns, answered[150].due_ns]
    rows = [{"round": number, "before_due_ns": ns} for number, ns in enumerate(before)]
    cell["warmup_cut"] = {"requests": 60, "before_due_ns": before[0], "rounds": rows}
    save(Finished(run(cell), [({**names, "round": str(i // 100)}, e) for i, e in enumerate(answered)]), tmp_path)
    side = load(tmp_path)
    assert compare(side, side)["cells"][0]["requests"] == [140, 140]


def test_what_is_cut_off_as_warm_up_stays_in_the_file_and_is_marked(tmp_path: Path) -> None:
    # Given a run whose first forty requests are slow
    cold = [
        walk(i, decode=2 + max(0, 40 - i) + i % 7 / 10, due_ms=i * 100)._replace(id=f"grpc-medium-x-{i}")
        for i in range(300)
    ]
    path = stored(tmp_path, {"grpc": cold})
    cut = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["warmup_cut"]["requests"]
    with path.with_name("requests.csv").open(newline="", encoding="utf-8") as file:
        marks = [int(record["warmup"]) for record in csv.DictReader(file)]
    assert cut > 20
    assert marks == [1] * cut + [0] * (300 - cut)
    side = load(path)
    assert compare(side, side)["cells"][0]["requests"] == [300 - cut] * 2


def test_runs_that_share_few_requests_are_not_paired(tmp_path: Path) -> None:
    a = load(stored(tmp_path / "a", {"grpc": requests("grpc", 200, 1)}))
    b = load(stored(tmp_path / "b", {"grpc": requests("grpc", 200, 1, first=150)}))
    (cell,) = compare(a, b)["cells"]
    assert cell["unpaired_because"] == "too few requests are in both"


def test_replays_of_other_traces_under_one_name_are_not_paired(tmp_path: Path) -> None:
    sides = [load(stored(tmp_path / name, {"grpc": requests("grpc", 200, 1)})) for name in ("a", "b")]
    for side, rate in zip(sides, (20.5, 20.25), strict=True):
        side.run["cells"][0].update(schedule="replay(t.csv)", offered_rps=rate)
    (cell,) = compare(*sides)["cells"]
    assert cell["unpaired_because"] == "the traces differ, or how much of them was sent"
    sides[1].run["cells"][0]["offered_rps"] = 20.5
    (cell,) = compare(*sides)["cells"]
    assert cell["paired"]


def test_what_cannot_be_compared_is_an_error_that_says_why(tmp_path: Path) -> None:
    a = load(stored(tmp_path / "a", {"grpc": requests("grpc", 20, 1)}))
    b = load(stored(tmp_path / "b", {"kafka": requests("kafka", 20, 1)}))
    with pytest.raises(PlanError, match=r"no measured cell in common .* grpc/medium/x; .* kafka/medium/x; choose with"):
        compare(a, b)
    with pytest.raises(PlanError, match="go together"):
        compare(a, b, "grpc")
    with pytest.raises(PlanError, match="has no target 'redis'; it has grpc/medium/x"):
        compare(a, b, "redis", "kafka")
    assert compare(a, b, "grpc", "kafka")["cells"][0]["paired"]
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        load(tmp_path / "nowhere.json")
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{", encoding="utf-8")
    with pytest.raises(PlanError, match="is no JSON"):
        load(wrong)
    wrong.write_text("{}", encoding="utf-8")
    with pytest.raises(PlanError, match="is not a run of schema"):
        load(wrong)
    (tmp_path / "b" / "requests.csv").write_text("nothing\n1\n", encoding="utf-8")
    with pytest.raises(PlanError, match="is no file of requests"):
        compare(a, b, "grpc", "kafka")
    (tmp_path / "b" / "requests.csv").unlink()
    with pytest.raises(PlanError, match=r"requests.csv is missing"):
        load(tmp_path / "b")
