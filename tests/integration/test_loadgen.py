"""The load generator's command line against real doors: what it prints, what it writes, how it fails."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from loadgen.__main__ import main
from loadgen.schedule import FORMS
from services.local.preflight import absent
from tests.photographs import jpeg

ROOT = Path(__file__).parents[2]

PLAN = """
name = "tiny"
seed = 3
warmup_s = 0.1
calibration_probes = 10
[targets]
door = "grpc://{door}"
{more}
[samples]
medium = 4
[[load]]
name = "one"
schedule = "closed(1)"
requests = 12
warmup = 2
[[load]]
name = "open"
schedule = "poisson(40)"
requests = 20
warmup = 2
"""


@pytest.fixture
def plan(tmp_path: Path, door: str) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(PLAN.format(door=door, more=""), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def usable(run: dict[str, Any]) -> bool:
    return all(cell["verdict"] in ("VALID", "CONTENDED") for cell in run["cells"])


def test_a_run_writes_everything_and_all_of_it_agrees(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # When a plan is carried out
    out = tmp_path / "out"
    status = main(["run", str(plan), "--out", str(out)])
    # Then the cells are there, with numbers of this door
    run = json.loads((out / "run.json").read_text())
    assert status == (0 if usable(run) else 1)
    assert run["schema"] == "beyond-inference/run/1"
    assert [(cell["target"], cell["load"], cell["ok"]) for cell in run["cells"]] == [
        ("door", "one", 12),
        ("door", "open", 20),
    ]
    for cell in run["cells"]:
        assert cell["label"] == "MEASURED"
        assert cell["ledger"] == {"complete": cell["ok"], "mismatched": 0}
        assert sum(group["share"] for group in cell["groups"]) == pytest.approx(1.0, abs=1e-9)
        assert sum(group["mean_ms"] for group in cell["groups"]) == pytest.approx(cell["latency_ms"]["mean"])
    # And every request is a row whose columns add up to its total
    with (out / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32
    for row in rows:
        parts = [
            int(value) for name, value in row.items() if name.endswith("_ns") and "@" in name and "_cpu_" not in name
        ]
        assert sum(parts) == int(row["total_ns"])
        assert row["error"] == ""
    means = [
        sum(int(row["total_ns"]) for row in rows if row["load"] == load) / n / 1e6
        for load, n in (("one", 12), ("open", 20))
    ]
    assert [cell["latency_ms"]["mean"] for cell in run["cells"]] == pytest.approx(means)
    # And there is a page and a table for people
    ET.fromstring((out / "report.html").read_text().partition("\n")[2])  # noqa: S314 # our own page
    text = capsys.readouterr().out
    assert "medium images, one (closed(1))" in text
    assert "100.0 %" in text
    assert (out / "report.md").read_text().strip() in text


def test_a_target_that_does_not_answer_is_not_run_and_the_others_are(
    tmp_path: Path, door: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.toml"
    path.write_text(
        PLAN.format(door=door, more='gone = "grpc://127.0.0.1:9"').replace("seed = 3", "seed = 3\ntimeout_s = 3.0"),
        encoding="utf-8",
    )
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 1
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    by_target = {(cell["target"], cell["load"]): cell for cell in run["cells"]}
    for load in ("one", "open"):
        gone = by_target["gone", load]
        assert gone["label"] == "NOT RUN"
        assert "127.0.0.1:9" in gone["reasons"][0]
        assert "latency_ms" not in gone, "what was not measured is nowhere, not even as 0"
        assert by_target["door", load]["ok"] > 0
    assert "NOT RUN" in capsys.readouterr().out
    assert "127.0.0.1:9" in (tmp_path / "out" / "report.html").read_text()


def test_own_images_take_the_place_of_all_sizes(plan: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("coffee", "chelsea"):
        (images / f"{name}.jpg").write_bytes(jpeg(name))
    main(["run", str(plan), "--images", str(images), "--out", str(tmp_path / "out")])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {cell["size"] for cell in run["cells"]} == {"own"}
    assert run["samples"] == {"own": {"files": 2, "mean_bytes": (len(jpeg("coffee")) + len(jpeg("chelsea"))) / 2}}


def test_asking_answers_in_words(door: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--url", f"grpc://{door}"]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert set(said) == {"coffee", "flower", "china", "chelsea"}
    assert said["coffee"].startswith("espresso (0.9")
    assert "cat" in said["chelsea"]


def test_calibrating_gives_the_floor_of_each_hop(door: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--url", f"grpc://{door}", "--probes", "20", "--pause-ms", "1", "--json"]) == 0
    (floor,) = json.loads(capsys.readouterr().out)
    assert floor["hop"] == "client>preprocess"
    assert 0 < floor["low_ns"] <= floor["p50_ns"] <= floor["high_ns"]


def test_samples_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "--size", "small", "--count", "3"]) == 0
    assert capsys.readouterr().out.startswith("small: 3 files, 60 x 70 pixels, ")


def test_a_report_can_be_written_anew(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    main(["run", str(plan), "--out", str(out)])
    first = (out / "report.html").read_text()
    (out / "report.html").unlink()
    main(["report", str(out / "run.json")])
    assert (out / "report.html").read_text() == first
    capsys.readouterr()
    (out / "run.json").write_text('{"schema": "other"}')
    assert main(["report", str(out / "run.json")]) == 2
    assert "beyond-inference/run/1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "absent.toml"], "absent.toml"),
        (["run", "PLAN", "--target", "door"], "NAME=URL"),
        (["run", "PLAN", "--target", "door=http://x"], "grpc://"),
        (["run", "PLAN", "--metrics", "door"], "--metrics 'door' is not NAME=URL"),
        (["run", "PLAN", "--metrics", "door=grpc://x:1"], "are not at http://host:port/metrics"),
        (["run", "PLAN", "--metrics", "other=http://x:1/metrics"], "'other', which is no target; there is door"),
        (["run", "PLAN", "--images", "nowhere"], "nowhere"),
        (["run", "PLAN", "--spans", "carrier-pigeon://x"], "otlp://"),
        (["ask", "--url", "127.0.0.1:1"], "grpc://"),
        (["calibrate", "--url", "null:"], "no hop"),
        (["demo", "--fraction", "0"], "--fraction"),
        (["report", "absent.json"], "absent.json"),
    ],
)
def test_wrong_input_says_what_is_wrong(
    arguments: list[str], said: str, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(plan) if argument == "PLAN" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_interrupting_keeps_what_is_finished(plan: Path, tmp_path: Path) -> None:
    # Given a run whose second load would take minutes
    plan.write_text(plan.read_text().replace("poisson(40)", "constant(0.1)"), encoding="utf-8")
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(  # noqa: S603 # ourselves
            [sys.executable, "-m", "loadgen", "run", str(plan), "--out", str(tmp_path / "out")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        # When it is interrupted in the second load
        deadline = time.monotonic() + 60
        while "door, open" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        # Then it ends at once, and the first load's cell is there
        try:
            assert child.wait(15) == 1
        finally:
            child.kill()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["interrupted"]
    assert [cell["load"] for cell in run["cells"]] == ["one"]
    assert "interrupted" in (tmp_path / "log").read_text()


MORE = """
name = "more"
seed = 3
warmup_s = 0.1
calibration_probes = 0
{keys}
[targets]
a = "grpc://{door}"
b = "grpc://{door}"
[samples]
medium = 4
[[load]]
name = "load"
warmup = 2
{load}
"""


def carry_out(tmp_path: Path, door: str, keys: str, load: str, *options: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "more.toml"
    path.write_text(MORE.format(door=door, keys=keys, load=load), encoding="utf-8")
    status = main(["run", str(path), "--out", str(tmp_path / "out"), *options])
    return status, json.loads((tmp_path / "out" / "run.json").read_text())


def rows_of(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "requests.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.alone
def test_targets_are_asked_in_rounds_with_the_same_schedule(tmp_path: Path, door: str) -> None:
    # When a plan of two targets has three rounds
    load = 'schedule = "poisson(60)"\nrequests = 40'
    _, run = carry_out(tmp_path, door, "rounds = 3", load)
    rows = rows_of(tmp_path)
    # Then they are asked in turn: A B A B A B
    order = [(row["target"], row["round"]) for row in sorted(rows, key=lambda row: int(row["due_ns"]))]
    assert list(dict.fromkeys(order)) == [(target, str(n)) for n in range(3) for target in ("a", "b")]
    # And each the same requests at the same instants within a round, so that they can be compared in pairs
    for number in range(3):
        mine, theirs = (
            [r for r in rows if (r["target"], r["round"]) == (target, str(number))] for target in ("a", "b")
        )
        assert [row["id"].removeprefix("a-") for row in mine] == [row["id"].removeprefix("b-") for row in theirs]
        gaps = [[int(row["due_ns"]) - int(part[0]["due_ns"]) for row in part] for part in (mine, theirs)]
        assert gaps[0] == gaps[1]
    for cell in run["cells"]:
        assert [round_["round"] for round_ in cell["rounds"]] == [0, 1, 2]
        assert sum(round_["requests"] for round_ in cell["rounds"]) == cell["sent"] == cell["requests"] == 40
        assert (cell["unsent"], cell["dropped"]) == (0, 0)
        # Poisson arrivals of this seed, without the time in which the other target was asked
        assert 40 < cell["offered_rps"] < 90
        assert cell["throughput_rps"] == pytest.approx(cell["offered_rps"], rel=0.5)


def test_several_sender_processes_carry_out_a_plan(tmp_path: Path, door: str) -> None:
    load = 'schedule = "constant(40)"\nrequests = 40'
    _, run = carry_out(tmp_path, door, "senders = 2", load)
    assert run["generator"]["senders"] == 2
    assert run["generator"]["ceiling_rps"] > 100
    for cell in run["cells"]:
        assert cell["ok"] == 40
        assert cell["offered_rps"] == pytest.approx(40)
        processes = {process["name"]: process for process in cell["contention"]["processes"]}
        assert {"sender 0", "sender 1"} <= set(processes)
        assert processes["sender 0"]["cpu_ms_per_request"] > 0
    assert len({row["id"] for row in rows_of(tmp_path)}) == 80


def test_a_rate_beyond_the_generator_is_refused_unless_it_is_wanted(
    tmp_path: Path, door: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load = 'schedule = "constant(5000000)"\nrequests = 50'
    path = tmp_path / "more.toml"
    path.write_text(MORE.format(door=door, keys="", load=load), encoding="utf-8")
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "asks for 5e+06 requests/s, over 70% of the " in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was measured"
    _, run = carry_out(tmp_path, door, "allow_saturated = true", load)
    for cell in run["cells"]:
        assert cell["verdict"] == "INVALID"
        assert any("the generator was saturated" in reason for reason in cell["reasons"])


def test_cameras_tell_what_they_dropped(tmp_path: Path, door: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Given cameras that are faster than any answer
    load = 'schedule = "cameras(2, 400)"\nrequests = 160'
    _, run = carry_out(tmp_path, door, "", load)
    rows = rows_of(tmp_path)
    for cell in run["cells"]:
        assert cell["dropped"] > 0
        assert cell["sent"] + cell["dropped"] == 160
        assert cell["requests"] == cell["sent"]
        assert cell["errors"] == {}, "to drop the oldest is what was asked for, and no failure"
        dropped = [row for row in rows if row["target"] == cell["target"] and row["error"] == "dropped"]
        assert len(dropped) == cell["dropped"]
        assert all(int(row["total_ns"]) > 0 for row in dropped)
        assert any(f"{cell['dropped']} of 160 frames" in reason for reason in cell["reasons"])
    assert "were dropped" in capsys.readouterr().out


def test_offline_asks_all_at_once(tmp_path: Path, door: str) -> None:
    _, run = carry_out(tmp_path, door, "", 'schedule = "offline(30)"')
    for cell in run["cells"]:
        assert (cell["planned"], cell["ok"], cell["offered_rps"]) == (30, 30, None)
        assert not any("late" in reason for reason in cell["reasons"])
        assert cell["throughput_rps"] > 0
    assert len({row["due_ns"] for row in rows_of(tmp_path) if row["target"] == "a"}) == 1


def test_a_trace_is_replayed_from_beside_its_plan(tmp_path: Path, door: str) -> None:
    arrivals = [0.0, 0.05, 0.06, 0.2, 0.4]
    (tmp_path / "day.csv").write_text("arrival_s\n" + "".join(f"{100 + at}\n" for at in arrivals), encoding="utf-8")
    _, run = carry_out(tmp_path, door, "", 'schedule = "replay(day.csv, speed=2)"')
    mine = [int(row["due_ns"]) for row in rows_of(tmp_path) if row["target"] == "a"]
    assert [due - mine[0] for due in mine] == pytest.approx([at / 2 * 1e9 for at in arrivals], abs=2)
    assert run["cells"][0]["planned"] == 5


def test_a_broken_threshold_sets_the_exit_status_and_is_named(
    tmp_path: Path, door: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load = 'schedule = "closed(1)"\nrequests = 15\nthresholds = {{ mean_ms = {limit}, error_rate = 0 }}'
    status, run = carry_out(tmp_path, door, "", load.format(limit=0.001))
    said = capsys.readouterr().err
    assert status == 3
    for cell in run["cells"]:
        assert [(entry["name"], entry["held"]) for entry in cell["thresholds"]] == [
            ("mean_ms", False),
            ("error_rate", True),
        ]
        assert f"threshold broken: medium, {cell['target']}, load: mean_ms is " in said
    # The report of what is stored says the same.
    assert main(["report", str(tmp_path / "out" / "run.json")]) == 3
    assert "threshold broken: medium, " in capsys.readouterr().err
    status, run = carry_out(tmp_path, door, "", load.format(limit=60_000))
    assert status == (0 if usable(run) else 1)
    assert "threshold broken" not in capsys.readouterr().err


def test_a_killed_sender_process_fails_the_run_and_what_was_finished_is_kept(tmp_path: Path, door: str) -> None:
    # Given a run with two senders, whose second target takes minutes
    path = tmp_path / "more.toml"
    path.write_text(
        MORE.format(door=door, keys="senders = 2", load='schedule = "constant(20)"\nrequests = 20')
        + '[[load]]\nname = "long"\nschedule = "constant(10)"\nrequests = 6000\nwarmup = 0\n',
        encoding="utf-8",
    )
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(  # noqa: S603 # ourselves
            [sys.executable, "-m", "loadgen", "run", str(path), "--out", str(tmp_path / "out")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 60
            while "a, long" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            # When one of its senders is killed
            os.kill(_children(child.pid)[-1], signal.SIGKILL)
            # Then it ends soon, and says why
            assert child.wait(20) == 1
        finally:
            child.kill()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "the generator failed: sender " in run["notes"][0]
    assert [cell["load"] for cell in run["cells"]] == ["load", "load"]
    assert "ended by itself with status -9" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("senders", [1, 2])
def test_ctrl_c_on_a_terminal_stops_all_processes(tmp_path: Path, door: str, senders: int) -> None:
    # Given a run of minutes; Ctrl-C goes to every process of a terminal's group
    path = tmp_path / "more.toml"
    load = 'schedule = "cameras(2, 10)"\nrequests = 6000'
    path.write_text(MORE.format(door=door, keys=f"senders = {senders}", load=load), encoding="utf-8")
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(  # noqa: S603 # ourselves
            [sys.executable, "-m", "loadgen", "run", str(path), "--out", str(tmp_path / "out")],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            process_group=0,
        )
        try:
            deadline = time.monotonic() + 60
            while "a, load" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            children = _children(child.pid)
            assert len(children) >= (senders if senders > 1 else 0)
            begin = time.monotonic()
            os.killpg(child.pid, signal.SIGINT)
            assert child.wait(15) == 1
            assert time.monotonic() - begin < 10
        finally:
            child.kill()
    # (multiprocessing's own helper notices by a closed pipe)
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < begin + 15:
        time.sleep(0.02)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    said = (tmp_path / "log").read_text()
    assert "interrupted" in said
    assert "Traceback" not in said


@pytest.mark.alone
def test_whoever_asks_nobody_sees_the_ceiling(tmp_path: Path) -> None:
    path = tmp_path / "null.toml"
    text = MORE.replace('a = "grpc://{door}"\nb = "grpc://{door}"', 'nobody = "null:"')
    path.write_text(text.format(keys="", load='schedule = "closed(1)"\nrequests = 3000'), encoding="utf-8")
    main(["run", str(path), "--out", str(tmp_path / "out")])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    (cell,) = run["cells"]
    assert cell["ceiling_rps"] is None
    assert not any("saturated" in reason for reason in cell["reasons"])
    # Asked one after the other or all at once, it is the same generator.
    assert cell["throughput_rps"] == pytest.approx(run["generator"]["ceiling_rps"], rel=0.9)


def _children(pid: int) -> list[int]:
    return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def test_help_explains_every_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    out = capsys.readouterr().out
    said = " ".join(out.split())
    # A column of forms, and beside it a column of words
    begin = out.index("schedules (")
    shown = out[begin : out.index("exit status", begin)].splitlines()[1:]
    assert all(line[:2] == "  " and (line[29:30] in (" ", "") or len(line.strip()) < 40) for line in shown if line)
    assert "  bursts(low, high, low_s, high_s)\n" + " " * 30 + "open: random" in out
    for form in FORMS:
        assert form in said
    assert "MLPerf SingleStream" in said
    assert "MLPerf Offline" in said


DEMO = """
name = "demo"
warmup_s = 0.5
calibration_probes = 10
[samples]
medium = 4
[[load]]
name = "1 in flight"
schedule = "closed(1)"
requests = 10
warmup = 2
"""


@pytest.mark.timeout(240)
def test_a_grid_of_replicas_is_measured_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Given a plan that a busy machine cannot be late for, and one door beside two
    plan = tmp_path / "tiny.toml"
    plan.write_text(PLAN.format(door="127.0.0.1:1", more="").partition('[[load]]\nname = "open"')[0], encoding="utf-8")
    out = tmp_path / "grid"
    flags = ["--transport", "grpc", "--model", "emulated", "--preprocess", "1,2", "--inference", "2"]
    # When the grid is measured
    assert main(["scale", str(plan), *flags, "--out", str(out), "--no-live"]) == 0
    # Then every process had its share of the work, and all files are there
    grid = json.loads((out / "scale.json").read_text())
    assert [(p["preprocess"], p["inference"]) for p in grid["points"]] == [(1, 2), (2, 2)]
    for p in grid["points"]:
        assert p["balanced"], p["served"]
        assert len(p["served"]) == p["preprocess"] + 2
    run = json.loads((out / "run.json").read_text())
    assert [(c["target"], c["load"]) for c in run["cells"]] == [("1x2", "one"), ("2x2", "one")]
    assert all(cell["ledger"]["mismatched"] == 0 and cell["errors"] == {} for cell in run["cells"])
    with (out / "requests.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 12
    assert (out / "scale.html").exists()
    assert (out / "report.html").exists()
    assert "down: preprocess, across: inference" in capsys.readouterr().out
    # And nothing is left behind
    assert not (out / "stack" / "stack.json").exists()


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_the_demo_runs_every_transport_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # When the demo runs, with a plan of seconds
    plan = tmp_path / "demo.toml"
    plan.write_text(DEMO, encoding="utf-8")
    done = subprocess.run(  # noqa: S603 # ourselves
        [sys.executable, "-m", "loadgen", "demo", "--plan", str(plan), "--out", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    # Then there is a cell per transport, and all of them say the same of the photographs
    assert (tmp_path / "demo" / "run.json").exists(), done.stderr
    run = json.loads((tmp_path / "demo" / "run.json").read_text())
    assert [cell["target"] for cell in run["cells"]] == ["fused", "grpc", "kafka", "kafka-python", "redis"]
    there = [cell for cell in run["cells"] if cell["target"] not in absent(["redis"])]
    assert {(cell["label"], cell["ok"]) for cell in there} == {("MEASURED", 10)}
    # and that their services, of which the demo knows where to ask, made no spans
    services = {(row["target"], row["service"]): row for row in run["service_spans"]}
    assert len(services) == 1 + 2 * (len(there) - 1)
    assert {(row["makes"], row["unknown"]) for row in services.values()} == {(False, None)}
    assert "coffee: espresso" in done.stdout
    assert done.stdout.count("says every target") == 4
    # And no process and no broker's data are left
    assert not (tmp_path / "demo" / "stack" / "broker" / "kafka-data").exists()
    assert not [path for path in Path("/proc").iterdir() if path.name.isdigit() and _runs_in(path, tmp_path)]


def _runs_in(process: Path, folder: Path) -> bool:
    try:
        return str(folder) in (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return False
