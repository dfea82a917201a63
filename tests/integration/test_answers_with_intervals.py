"""`knee`, `compare` and `inspect` against a real door whose service time is known."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadgen.__main__ import main
from services.local.broker import container_engine
from services.local.jaeger import Jaeger, binary
from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess

# One request after the other, 20 ms each: 50 a second at most.
MODELS = """
[slow]
task = "classification"
law = [20, 0]
recipe = { size = 224, crop = 256, mean = [127, 127, 127], std = [128, 128, 128] }
outputs = { logits = { dtype = "float32", shape = [-1, 1000] } }
"""
PLAN = """
name = "{name}"
seed = 3
warmup_s = 0.1
calibration_probes = 0
[targets]
door = "grpc://{door}"
[samples]
small = 4
[[load]]
name = "one"
schedule = "closed(1)"
requests = 40
"""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = tmp_path_factory.mktemp("models") / "models.toml"
    models.write_text(MODELS, encoding="utf-8")
    flags = ["--listen", "127.0.0.1:0", "--models-file", str(models), "--link", "slow=fused:"]
    service: Service = build_preprocess(parse(PreprocessSettings, "", flags, {}))
    service.start()
    yield service.host_port
    service.stop(5)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.timeout(180)
def test_the_knee_of_a_server_of_fifty_a_second(door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # When it is searched for within 40 seconds
    status = main(
        ["knee", "--url", f"grpc://{door}", "--slo", "p50<80ms", "--size", "small", "--from", "15", "--budget-s", "40",
         "--precision", "0.3", "--out", str(tmp_path / "knee")]
    )  # fmt: skip
    result = json.loads((tmp_path / "knee" / "knee.json").read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    # Then it took no longer, and every trial was told
    assert result["seconds"] < 40
    assert len(result["trials"]) >= 2
    assert said.count("/s  ") >= len(result["trials"])
    assert said.startswith("the highest rate that meets p50<80ms, within 40 s")
    assert result["label"] == "EMULATED"
    assert result["generator"]["ceiling_rps"] > 0
    # and no rate that the server cannot do was taken to hold
    assert status == (0 if result["held_rps"] else 1)
    for trial in result["trials"]:
        if trial["rate_rps"] >= 60:
            assert trial["held"] is not True
    if result["held_rps"] is not None:
        assert 15 <= result["held_rps"] < 60
        assert f"{result['held_rps']:.4g} requests/s meet p50<80ms" in said
    page = (tmp_path / "knee" / "knee.html").read_text(encoding="utf-8")
    assert page.count('class="trial"') == len(result["trials"])


def test_two_runs_are_compared_pair_by_pair_and_a_request_is_inspected(
    door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name in ("a", "b"):
        plan = tmp_path / f"{name}.toml"
        plan.write_text(PLAN.format(name=name, door=door), encoding="utf-8")
        folders.append(tmp_path / name)
        main(["run", str(plan), "--out", str(folders[-1])])
    capsys.readouterr()
    # When they are compared
    status = main(["compare", *map(str, folders), "--json"])
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    # Then the same requests are beside one another, and their differences are those of the files
    assert status == (0 if cell["a"]["verdict"] != "INVALID" and cell["b"]["verdict"] != "INVALID" else 1)
    assert (cell["paired"], cell["requests"]) == (True, [40, 40])
    means, computed = [], []
    for folder in folders:
        with (folder / "requests.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        means.append(sum(int(row["total_ns"]) for row in rows) / len(rows) / 1e6)
        computed.append(sum(int(row["infer@inference_ns"]) for row in rows) / len(rows) / 1e6)
    mean = cell["latency"][0]
    assert mean["difference_ms"] == pytest.approx(means[1] - means[0])
    assert mean["low_ms"] <= mean["difference_ms"] <= mean["high_ms"]
    infer = next(row for row in cell["stages"] if row["stage"] == "infer")
    assert infer["a_ms"] == pytest.approx(computed[0])
    assert infer["a_ms"] >= 20
    # and in words
    assert main(["compare", *map(str, folders)]) == status
    assert "40 requests, pair by pair" in capsys.readouterr().out
    # When one of them is inspected, by its trace id
    with (folders[0] / "requests.csv").open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert main(["inspect", row["traceparent"].split("-")[1], "--run", str(folders[0])]) == 0
    text = capsys.readouterr().out
    assert f"{int(row['total_ns']):,}" in text
    assert f"{int(row['infer@inference_ns']):,}" in text


@pytest.mark.jaeger
@pytest.mark.timeout(900)  # it is built the first time
def test_a_request_is_inspected_as_a_real_jaeger_has_it(
    door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if binary() is None and container_engine() is None and shutil.which("go") is None:
        pytest.skip("neither Go, which builds Jaeger, nor docker or podman, which run its image, is here")
    plan = tmp_path / "traced.toml"
    plan.write_text(PLAN.format(name="traced", door=door), encoding="utf-8")
    jaeger = Jaeger(tmp_path / "jaeger")
    jaeger.start()
    try:
        # Given a run whose spans are all sent there
        main(["run", str(plan), "--out", str(tmp_path / "out"), "--spans", jaeger.otlp, "--sample-ratio", "1"])
        with (tmp_path / "out" / "requests.csv").open(newline="", encoding="utf-8") as file:
            row = list(csv.DictReader(file))[7]
        capsys.readouterr()
        # When one of its requests is asked for; storing it takes a moment
        deadline = time.monotonic() + 30
        command = ["inspect", row["traceparent"].split("-")[1], "--jaeger", jaeger.url]
        while (status := main(command)) != 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert status == 0
    finally:
        jaeger.stop()
    # Then it is the same to the nanosecond
    text = capsys.readouterr().out
    for stage in ("infer@inference", "decode@preprocess", "normalize@preprocess"):
        assert f"{int(row[f'{stage}_ns']):,}" in text, stage
    assert "have a parent that is not in the trace" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["knee", "--url", "grpc://127.0.0.1:9", "--slo", "fast"], "e.g. p99<50ms"),
        (["knee", "--url", "http://x", "--slo", "p99<50ms"], "grpc://host:port"),
        (["knee", "--url", "null:", "--slo", "p99<50ms", "--from", "1", "--budget-s", "60"], "--budget-s"),
        (["knee", "--url", "null:", "--slo", "p99<50ms", "--from", "0"], "--from"),
        (["knee", "--url", "null:", "--slo", "p99<50ms", "--arrivals", "tidal"], "poisson nor constant"),
        (["knee", "--url", "null:", "--slo", "p99<50ms", "--confidence", "1"], "--confidence"),
        (["knee", "--url", "null:", "--slo", "p99<50ms", "--precision", "0"], "--precision"),
        (["knee", "--url", "null:", "--slo", "p99<50ms", "--senders", "0"], "--senders"),
        (["compare", "absent", "absent"], "absent"),
        (["inspect", "abc", "--run", "absent"], "absent"),
        (["inspect", "abc", "--jaeger", "http://127.0.0.1:9"], "is no trace id"),
        (["inspect", "a" * 32, "--jaeger", "http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_wrong_input_says_what_is_wrong(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_door_that_is_away_is_an_error_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knee", "--url", "grpc://127.0.0.1:9", "--slo", "p99<50ms", "--size", "small"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
