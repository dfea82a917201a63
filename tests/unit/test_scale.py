"""A grid of replicas: each point is a run, all of them are one, and what was not balanced or not run is told."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import loadgen.__main__
from loadgen import report_html, report_scale, scale, scale_kubernetes
from loadgen.analysis import analyse
from loadgen.compare import compare, load
from loadgen.errors import PlanError
from loadgen.experiment import Finished, save
from loadgen.scale import Point, until
from loadgen.scale_kubernetes import BEFORE, Cluster, _ended
from loadgen.scrape import Served, served
from loadgen.stored import read_run
from services.errors import ServiceError
from tests.exchanges import walk
from tests.runs import run

ABOUT = {"name": "grid", "site": "nowhere", "transport": "grpc"}


class Pretended:
    """A site whose requests get shorter with replicas. `fails`: at these points."""

    def __init__(self, fails: Mapping[Point, BaseException] | None = None, idle: int = 0) -> None:
        self.fails = fails or {}
        self.idle = idle  # replicas of inference that get no work
        self.now: Point | None = None
        self.asked = 0
        self.closed = 0

    def change(self, point: Point) -> None:
        self.now = point

    def carry_out(self, point: Point, folder: Path) -> None:
        if point in self.fails:
            raise self.fails[point]
        names = {"target": "door", "size": "medium", "load": "x", "schedule": "closed(1)"}
        exchanges = [
            walk(i, decode=4 / point.preprocess, infer=9 / point.inference + i % 3, due_ms=i * 30)._replace(
                id=f"door-medium-x-{i}"
            )
            for i in range(700)
        ]
        cell = {**names, **analyse(exchanges, (), {}, 1.0, False, closed=True)}
        whole = run(cell, plan={"targets": {"door": "grpc://127.0.0.1:1"}})
        save(Finished(whole, [({**names, "round": "0"}, exchange) for exchange in exchanges]), folder)
        self.asked += 700

    def served(self) -> Mapping[str, Served]:
        point = self.now
        assert point is not None
        busy = point.inference - self.idle
        doors = {f"p{i}": Served("preprocess", self.asked / point.preprocess) for i in range(point.preprocess)}
        engines = {f"i{i}": Served("inference", self.asked / busy if i < busy else 0.0) for i in range(point.inference)}
        return doors | engines

    def close(self) -> None:
        self.closed += 1


def parse(page: str) -> ET.Element:
    return ET.fromstring(page.removeprefix("<!doctype html>"))  # noqa: S314 # our own


def measured(folder: Path, site: Pretended, *wanted: Point) -> dict[str, Any]:
    return scale.measure(wanted, site, folder, lambda _: None, ABOUT)


def test_points_are_all_of_the_grid_the_smallest_first() -> None:
    assert scale.points([1, 2], [2, 1]) == [Point(1, 1), Point(1, 2), Point(2, 1), Point(2, 2)]
    assert scale.parse_counts("4,1,4", "--inference") == [4, 1]


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "two", "1.5", "65"])
def test_what_are_no_replicas_is_said(text: str) -> None:
    with pytest.raises(PlanError, match="--preprocess is"):
        scale.parse_counts(text, "--preprocess")


def test_every_point_is_a_run_and_all_together_are_one(tmp_path: Path) -> None:
    # Given a grid of four points
    site = Pretended()
    grid = measured(tmp_path, site, *scale.points([1, 2], [1, 2]))
    # Then each has its run, beside the one that has them all as targets
    assert site.closed == 1
    assert [p["run"] for p in grid["points"]] == [f"points/{n}/run.json" for n in ("1x1", "1x2", "2x1", "2x2")]
    whole = read_run(tmp_path)[1]
    assert [cell["target"] for cell in whole["cells"]] == ["1x1", "1x2", "2x1", "2x2"]
    for p, cell in zip(grid["points"], whole["cells"], strict=True):
        own = read_run(tmp_path / p["run"])[1]["cells"][0]
        assert {**cell, "target": "door"} == own
        assert p["cells"][0]["latency_ms"] == own["latency_ms"]
        assert p["cells"][0]["throughput_rps"] == own["throughput_rps"]
    # And is compared pair by pair, and drawn, as any run
    (found,) = compare(load(tmp_path), load(tmp_path), "1x1", "2x2")["cells"]
    assert found["paired"]
    assert found["requests"] == [700, 700]
    mean = next(row for row in found["latency"] if row["of"] == "mean")
    assert mean["difference_ms"] == pytest.approx(-2 - 4.5, abs=0.01)
    parse(report_html.render(whole))
    assert json.loads((tmp_path / "scale.json").read_text())["points"] == grid["points"]


def test_the_page_shows_what_the_file_says(tmp_path: Path) -> None:
    grid = measured(tmp_path, Pretended(), Point(1, 1), Point(2, 2))
    page = parse(report_scale.render(grid))
    shown = [float(cell.attrib["data-value"]) for cell in page.iter("td") if "data-value" in cell.attrib]
    cells = [p["cells"][0] for p in grid["points"]]
    assert shown == [c["throughput_rps"] for c in cells] + [c["latency_ms"]["p99"] for c in cells]
    assert len([1 for svg in page.iter("svg")]) == 1
    words = scale.table(grid)
    for cell in cells:
        assert f"{cell['throughput_rps']:.1f}" in words
        assert f"{cell['latency_ms']['p99']:.1f}" in words
    assert "not balanced" not in words


def test_a_replica_without_work_is_told(tmp_path: Path) -> None:
    grid = measured(tmp_path, Pretended(idle=1), Point(1, 2))
    assert not grid["points"][0]["balanced"]
    assert "1 preprocess, 2 inference: not balanced: i0 700, i1 0, p0 700" in scale.table(grid)


def test_shares_are_of_what_was_answered_in_between() -> None:
    before = {"a": Served("inference", 100.0), "b": Served("inference", 10.0)}
    after = {"a": Served("inference", 130.0), "b": Served("inference", 20.0), "new": Served("preprocess", 40.0)}
    rows = {row["name"]: row for row in scale.shares(before, after)}
    assert [rows[name]["requests"] for name in ("a", "b", "new")] == [30, 10, 40]
    assert [rows[name]["share"] for name in ("a", "b", "new")] == [0.75, 0.25, 1.0]
    assert scale.balanced(list(rows.values()))  # a quarter is half of an even share
    assert not scale.balanced(scale.shares(before, {**after, "b": Served("inference", 19.0)}))
    assert not scale.balanced(scale.shares({}, {"a": Served("inference", 0.0)}))


def test_a_later_point_that_cannot_be_measured_is_not_run_and_the_others_are(tmp_path: Path) -> None:
    site = Pretended({Point(1, 2): ServiceError("no room")})
    grid = measured(tmp_path, site, Point(1, 1), Point(1, 2), Point(2, 1))
    assert [p["reason"] for p in grid["points"]] == [None, "no room", None]
    assert [cell["target"] for cell in read_run(tmp_path)[1]["cells"]] == ["1x1", "2x1"]
    assert site.closed == 1
    parse(report_scale.render(grid))


def test_a_first_point_that_cannot_be_measured_is_an_error_and_all_is_set_back(tmp_path: Path) -> None:
    site = Pretended({Point(1, 1): ServiceError("no room")})
    with pytest.raises(ServiceError, match="no room"):
        measured(tmp_path, site, Point(1, 1), Point(1, 2))
    assert site.closed == 1


def test_interrupting_keeps_the_points_that_are_finished(tmp_path: Path) -> None:
    site = Pretended({Point(1, 2): KeyboardInterrupt()})
    grid = measured(tmp_path, site, Point(1, 1), Point(1, 2), Point(2, 1))
    assert grid["interrupted"]
    assert [cell["target"] for cell in read_run(tmp_path)[1]["cells"]] == ["1x1"]
    assert site.closed == 1


def test_a_grid_that_could_not_be_set_back_is_kept_and_says_so(tmp_path: Path) -> None:
    class Stuck(Pretended):
        def close(self) -> None:
            raise ServiceError("set them by hand")

    grid = measured(tmp_path, Stuck(), Point(1, 1))
    assert grid["notes"] == ["set them by hand"]
    assert json.loads((tmp_path / "scale.json").read_text())["notes"] == grid["notes"]


def test_what_a_service_answered_well_is_in_its_scrape() -> None:
    info = 'beyond_service_info{service="inference",version="1"} 1\n'
    counts = (
        'beyond_requests_total{service="inference",task="t",transport="grpc",outcome="ok"} 41\n'
        'beyond_requests_total{service="inference",task="u",transport="grpc",outcome="ok"} 1e1\n'
        'beyond_requests_total{service="inference",task="t",transport="grpc",outcome="overloaded"} 7\n'
        "beyond_requests_total_created 9\n"
    )
    assert served(info + counts) == Served("inference", 51.0)
    assert served(info) == Served("inference", 0.0)
    with pytest.raises(ValueError, match="not the metrics"):
        served(counts)


def test_waiting_ends_with_what_is_missing() -> None:
    tries = iter([False, False, True])
    until(lambda: next(tries), 60, lambda: "never", sleep=lambda _: None)
    with pytest.raises(ServiceError, match="after 0 s the sky is up"):
        until(lambda: False, 0, lambda: "the sky is up", sleep=lambda _: None)


# --- a cluster -------------------------------------------------------------------------------------------------------


def item(name: str, component: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"app.kubernetes.io/component": component}}, "spec": spec}


class Kubectl:
    """Answers as kubectl would; `asked` keeps what changes something."""

    def __init__(self, *, fused: bool = False, hpa: bool = False) -> None:
        engines = [] if fused else [item("r-inference-m", "inference-m", replicas=1)]
        self.lists = {
            "deployments": [
                item("r-preprocess", "preprocess", replicas=3),
                item("r-jaeger", "jaeger", replicas=1),
                *engines,
            ],
            "horizontalpodautoscalers": [item("r-preprocess", "preprocess")] if hpa else [],
        }
        self.replicas = {d["metadata"]["name"]: d["spec"]["replicas"] for d in self.lists["deployments"]}
        self.asked: list[str] = []

    def __call__(self, arguments: list[str], seconds: float) -> str:
        assert seconds > 0
        words = arguments[2:] if arguments[0] == "--namespace" else arguments
        if words[0] == "get" and words[1] == "--raw":
            lag = "inference" in words[2]
            service = "inference" if lag else "preprocess"
            return f'beyond_service_info{{service="{service}"}} 1\n' + ('beyond_consumer_lag_records{p="1"} 0\n' * lag)
        if words[0] == "get" and words[1] == "pods":
            found = [
                item(f"{name}-{i}", name.removeprefix("r-")) for name, n in self.replicas.items() for i in range(n)
            ]
            return json.dumps({"items": found})
        if words[0] == "get":
            return json.dumps({"items": self.lists[words[1]]})
        self.asked.append(" ".join(words))
        name = words[1].partition("/")[2]
        if words[0] == "scale":
            self.replicas[name] = int(words[2].partition("=")[2])
        for deployment in self.lists["deployments"]:
            if words[0] == "annotate" and deployment["metadata"]["name"] == name:
                annotations = deployment["metadata"].setdefault("annotations", {})
                key, _, value = words[2].removesuffix("-").partition("=")
                if words[2].endswith("-"):
                    del annotations[key]
                else:
                    annotations[key] = value
            if deployment["metadata"]["name"] == name and words[0] == "scale":
                deployment["spec"]["replicas"] = self.replicas[name]
        return ""


def cluster(ask: Kubectl) -> Cluster:
    return Cluster(Path("plan.toml"), "r", "n", lambda *_: None, settle_s=0.0, ask=ask)


def test_replicas_are_patched_waited_for_and_set_back() -> None:
    ask = Kubectl()
    site = cluster(ask)
    site.change(Point(2, 4))
    changed = [words for words in ask.asked if not words.startswith("annotate")]
    assert changed[:2] == [
        "scale deployment/r-preprocess --replicas=2",
        "scale deployment/r-inference-m --replicas=4",
    ]
    assert [words.split(" --timeout")[0] for words in changed[2:]] == [
        "rollout status deployment/r-preprocess",
        "rollout status deployment/r-inference-m",
    ]
    assert {served.service for served in site.served().values()} == {"preprocess", "inference"}
    assert len(site.served()) == 6
    site.close()
    assert (ask.replicas["r-preprocess"], ask.replicas["r-inference-m"]) == (3, 1)


def test_who_is_killed_leaves_what_the_next_one_sets_back() -> None:
    # Given an experiment that was killed at one of its points
    ask = Kubectl()
    cluster(ask).change(Point(1, 4))
    assert ask.replicas["r-inference-m"] == 4
    # When the next one comes, changes replicas, and ends
    site = cluster(ask)
    assert site.left() == {"r-inference-m": 1, "r-preprocess": 3}
    site.change(Point(2, 2))
    site.close()
    # Then all is as it was before the first one, and nothing is left to be told
    assert (ask.replicas["r-preprocess"], ask.replicas["r-inference-m"]) == (3, 1)
    assert not any(BEFORE in d["metadata"].get("annotations", {}) for d in ask.lists["deployments"])
    assert cluster(ask).left() == {}


def test_replicas_are_noted_before_they_are_changed() -> None:
    ask = Kubectl()
    cluster(ask).change(Point(2, 4))
    noted = [index for index, words in enumerate(ask.asked) if words.startswith("annotate")]
    assert max(noted) < min(index for index, words in enumerate(ask.asked) if words.startswith("scale"))


def test_what_was_left_can_be_set_back_without_an_experiment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = Kubectl()
    cluster(ask).change(Point(1, 4))
    monkeypatch.setattr("loadgen.commands.scale.Cluster", lambda *_: cluster(ask))
    for says in ("set back: r-inference-m to 1, r-preprocess to 3", "no experiment has left anything"):
        assert loadgen.__main__.main(["scale", "--restore", "--release", "r"]) == 0
        assert says in capsys.readouterr().out
    assert (ask.replicas["r-preprocess"], ask.replicas["r-inference-m"]) == (3, 1)


@pytest.mark.parametrize(
    ("flags", "says"), [(["--restore"], "name it: --release NAME"), ([], "scale needs a plan")], ids=["where", "what"]
)
def test_what_scale_is_not_told_is_said(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert loadgen.__main__.main(["scale", *flags]) == 2
    assert says in capsys.readouterr().err


def test_the_job_of_a_point_may_take_as_long_as_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def ended(command: list[str]) -> tuple[int, str]:
        commands.append(command)
        (Path(command[command.index("--out") + 1]) / "job").mkdir()
        (Path(command[command.index("--out") + 1]) / "job" / "run.json").touch()
        return 0, ""

    monkeypatch.setattr(scale_kubernetes, "_ended", ended)
    site = Cluster(Path("plan.toml"), "r", "n", lambda *_: None, wait_s=7200.0, ask=Kubectl())
    site.carry_out(Point(1, 1), tmp_path / "out")
    assert commands[0][commands[0].index("--wait-s") + 1] == "7200"


def test_setting_back_tries_all_and_says_what_is_left_to_do() -> None:
    class Failing(Kubectl):
        def __call__(self, arguments: list[str], seconds: float) -> str:
            if "deployment/r-preprocess" in arguments:
                raise ServiceError("the API server is away")
            return super().__call__(arguments, seconds)

    ask = Failing()
    ask.replicas["r-inference-m"] = 4
    site = cluster(ask)
    with pytest.raises(ServiceError, match=r"kubectl -n n scale deployment/r-preprocess --replicas=3 \(the API"):
        site.close()
    assert ask.replicas["r-inference-m"] == 1


def test_what_is_interrupted_has_time_to_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a command that cleans up when it is terminated
    cleaned = tmp_path / "cleaned"
    code = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(cleaned)!r}).touch(), sys.exit(1)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    real = subprocess.Popen.communicate

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        if not options:  # the first wait, not that for the cleaning
            assert self.stdout.readline() == "ready\n"
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _ended([sys.executable, "-c", code])
    assert cleaned.exists()


def test_a_release_that_scales_itself_or_is_not_there_is_refused() -> None:
    with pytest.raises(PlanError, match="scales the release itself"):
        cluster(Kubectl(hpa=True))
    empty = Kubectl()
    empty.lists["deployments"] = []
    with pytest.raises(PlanError, match="no door of a release 'r'"):
        cluster(empty)


def test_without_helm_nothing_is_changed_in_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("loadgen.commands.scale.Cluster", made)
    flags = ["--release", "r", "--helm", str(tmp_path / "helm"), "--out", str(tmp_path / "out")]
    assert loadgen.__main__.main(["scale", "loadgen/plans/example.toml", *flags]) == 1
    assert "`make helm` prints the path" in capsys.readouterr().err


def test_an_engine_in_the_door_cannot_be_scaled_alone() -> None:
    with pytest.raises(PlanError, match="--inference can only be 1"):
        cluster(Kubectl(fused=True)).change(Point(2, 2))
