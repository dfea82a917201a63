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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadgen.__main__ import main
from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
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


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    settings = parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0"], {})
    service: Service = build_preprocess(settings)
    service.start()
    yield service.host_port
    service.stop(5)


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
    assert [cell["target"] for cell in run["cells"]] == ["fused", "grpc", "kafka", "kafka-python"]
    assert {(cell["label"], cell["ok"]) for cell in run["cells"]} == {("MEASURED", 10)}
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
