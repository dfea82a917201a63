"""Plans: what is right is read as it stands, and every slip is named with its file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import loadgen
from loadgen.errors import PlanError
from loadgen.plan import OWN, load_plan

# But for those of figures (tests/unit/test_figure_plans.py), and the models that these ask.
PLANS = sorted(
    path
    for path in (Path(loadgen.__file__).parent / "plans").glob("*.toml")
    if not re.match(r"e\d+-|figures-models", path.name)
)
GOOD = """
name = "mine"
seed = 3
task = "classification"
timeout_s = 5
calibration_probes = 12
[targets]
door = "grpc://127.0.0.1:8001"
ceiling = "null:"
[samples]
medium = 20
small = 4
[[load]]
name = "alone"
schedule = "closed(1)"
requests = { medium = 10, small = 5 }
warmup = 2
[[load]]
name = "open"
schedule = { medium = "poisson(50)" }
requests = 7
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_plan_is_read(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, GOOD))
    assert (plan.name, plan.seed, plan.task, plan.timeout_s, plan.calibration_probes) == (
        "mine",
        3,
        "classification",
        5.0,
        12,
    )
    assert plan.targets == {"door": "grpc://127.0.0.1:8001", "ceiling": "null:"}
    assert plan.samples == {"medium": 20, "small": 4}
    alone, open_ = plan.loads
    # One value stands for all sizes; a table for those in it.
    assert alone.schedule == {"medium": "closed(1)", "small": "closed(1)"}
    assert alone.requests == {"medium": 10, "small": 5}
    assert open_.schedule == {"medium": "poisson(50)"}
    assert open_.requests == {"medium": 7}
    assert (alone.warmup, open_.warmup) == (2, 5)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_the_plans_that_come_with_the_project_are_right(path: Path) -> None:
    assert load_plan(path).loads


def test_what_a_result_says_of_its_plan_is_the_plan_that_ran(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, GOOD))
    again = load_plan(written(tmp_path, _toml(plan.source)))
    assert again == plan
    # Given other targets and fewer requests, it says those.
    changed = plan.with_targets({"d": "null:"}).with_loads(tuple(x.with_requests({"medium": 1}) for x in plan.loads))
    assert changed.source["targets"] == {"d": "null:"}
    assert [load["requests"] for load in changed.source["load"]] == [{"medium": 1}] * 2


def _toml(source: dict[str, object]) -> str:
    """As much TOML as a plan needs."""

    def value(item: object) -> str:
        if isinstance(item, dict):
            return "{ " + ", ".join(f"{k} = {value(v)}" for k, v in item.items()) + " }"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        if isinstance(item, bool):
            return str(item).lower()
        return f'"{item}"' if isinstance(item, str) else str(item)

    return "\n".join(f"{key} = {value(item)}" for key, item in source.items())


def test_own_images_take_the_place_of_all_sizes(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, GOOD)).for_own_images(9)
    assert plan.samples == {OWN: 9}
    assert [(load.schedule, load.requests) for load in plan.loads] == [
        ({OWN: "closed(1)"}, {OWN: 10}),
        ({OWN: "poisson(50)"}, {OWN: 7}),
    ]


def test_with_own_images_samples_may_be_left_out(tmp_path: Path) -> None:
    # Given a plan without [samples]
    bare = GOOD[: GOOD.index("[samples]")] + (
        '[[load]]\nname = "alone"\nschedule = "closed(1)"\nrequests = 10\nthresholds = { p99_ms = 9 }\n'
    )
    with pytest.raises(PlanError, match=r"\[samples\] is empty; give a size .* or your own files: --images DIR"):
        load_plan(written(tmp_path, bare))
    # When there are 9 files of the user's
    plan = load_plan(written(tmp_path, bare), own_images=True).for_own_images(9)
    # Then loads are for them
    assert plan.samples == {OWN: 9}
    (load,) = plan.loads
    assert (load.schedule, load.requests) == ({OWN: "closed(1)"}, {OWN: 10})
    assert plan.limits(load, OWN) == {"p99_ms": 9.0}
    # and a size that only [samples] could explain is still an error
    sized = bare.replace("requests = 10", "requests = { medium = 10 }")
    with pytest.raises(PlanError, match="unknown key 'medium'; known: own"):
        load_plan(written(tmp_path, sized), own_images=True)


def test_metrics_are_named_per_target(tmp_path: Path) -> None:
    text = change("[samples]", '[metrics]\ndoor = "http://127.0.0.1:9464"\nceiling = ["http://[::1]:1/m"]\n[samples]')
    plan = load_plan(written(tmp_path, text))
    assert plan.metrics == {"door": ("http://127.0.0.1:9464",), "ceiling": ("http://[::1]:1/m",)}
    assert load_plan(written(tmp_path, _toml(plan.source))) == plan


def test_a_schedule_with_a_number_of_its_own_needs_no_requests(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text("arrival_s,size\n0,medium\n1,small\n2,medium\n", encoding="utf-8")
    text = change('{ medium = "poisson(50)" }\nrequests = 7', '"replay(day.csv)"').replace(
        '"closed(1)"\nrequests = { medium = 10, small = 5 }', '"offline(40)"'
    )
    plan = load_plan(written(tmp_path, text))
    assert [load.requests for load in plan.loads] == [{"medium": 40, "small": 40}, {"medium": 2, "small": 1}]
    # The trace is found beside the plan, wherever one stands; and a warm-up is not longer than the trace.
    assert plan.schedule(plan.loads[1], "medium").due_ns == (0, 2_000_000_000)
    warmup = plan.warmup(plan.loads[1], "medium", 1)
    assert warmup is not None
    assert warmup.requests == 2


def test_a_warm_up_reaches_every_sender_and_asks_at_other_instants(tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, GOOD.replace("warmup = 2", "warmup = 0")))
    alone, open_ = plan.loads
    assert plan.warmup(alone, "medium", 4) is None
    warmup = plan.warmup(open_, "medium", 16)
    assert warmup is not None
    assert warmup.requests == 16
    assert warmup.due_ns[:7] != plan.schedule(open_, "medium").due_ns


def test_the_thresholds_of_a_load_stand_for_those_of_the_plan(tmp_path: Path) -> None:
    text = change(
        "[targets]", "[thresholds]\np99_ms = { medium = 50, small = 20 }\nerror_rate = 0.01\n[targets]"
    ).replace("warmup = 2", "thresholds = { p99_ms = 9, throughput_rps = { small = 100 } }")
    plan = load_plan(written(tmp_path, text))
    alone, open_ = plan.loads
    assert plan.limits(open_, "medium") == {"p99_ms": 50.0, "error_rate": 0.01}
    assert plan.limits(alone, "medium") == {"p99_ms": 9.0, "error_rate": 0.01}
    assert plan.limits(alone, "small") == {"p99_ms": 9.0, "error_rate": 0.01, "throughput_rps": 100.0}
    assert load_plan(written(tmp_path, _toml(plan.source))) == plan
    own = plan.for_own_images(3)
    assert own.limits(own.loads[0], OWN) == {"p99_ms": 9.0, "error_rate": 0.01, "throughput_rps": 100.0}


def change(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "is not TOML"),
        (change("[samples]", "[metrics]\ndoor = 9464\n[samples]"), "[metrics] 'door' has 9464; give an address"),
        (
            change("[samples]", '[metrics]\ndoor = "127.0.0.1:9464"\n[samples]'),
            "[metrics] 'door': metrics '127.0.0.1:9464' are not at http://host:port/metrics",
        ),
        (change("seed = 3", "sede = 3"), "unknown key 'sede'; known: allow_saturated, calibration_probes"),
        (change('name = "mine"', "name = 3"), "'name' is 3, not text"),
        (change('name = "mine"', 'name = "a/b"'), "'name' is 'a/b'"),
        (change("seed = 3", "seed = true"), "'seed' is True, not a whole number"),
        (change("seed = 3", "seed = 1.5"), "'seed' is 1.5, not a whole number"),
        (change("timeout_s = 5", 'timeout_s = "5 s"'), "'timeout_s' is '5 s', not a number"),
        (change("timeout_s = 5", "timeout_s = 0"), "'timeout_s' is 0; give the seconds"),
        (change("timeout_s = 5", "timeout_s = inf"), "'timeout_s' is inf"),
        (change("timeout_s = 5", "timeout_s = nan"), "'timeout_s' is nan"),
        (change("calibration_probes = 12", "calibration_probes = -1"), "'calibration_probes' is -1; the least is 0"),
        (change('"grpc://127.0.0.1:8001"', '"http://x:1"'), "[targets] 'door': target 'http://x:1' is neither"),
        (change('"grpc://127.0.0.1:8001"', '"grpc://x"'), "[targets] 'door'"),
        (change('"grpc://127.0.0.1:8001"', "1"), "[targets]: 'door' is 1, not text"),
        (change("[targets]", "[[targets]]"), "'targets' is [{"),
        (change("medium = 20\nsmall = 4", ""), "[samples] is empty; give a size and a count"),
        (change("small = 4", "tiny = 4"), "[samples]: unknown key 'tiny'; known: faces-1, faces-16"),
        (change("small = 4", "small = 0"), "[samples] 'small' is 0; give from 1 to 100"),
        (change("small = 4", "small = 101"), "[samples] 'small' is 101; give from 1 to 100"),
        (change("medium = 10, small = 5", "medium = 10"), "[samples] has 'small', which no [[load]] sends"),
        (GOOD[: GOOD.index("[[load]]")], "there is no [[load]]"),
        (GOOD[: GOOD.index("[targets]")] + "load = 3\n[samples]\nsmall = 1", "'load' is 3, not a list"),
        (GOOD[: GOOD.index("[targets]")] + "load = [3]\n[samples]\nsmall = 1", "[[load]] 1: 3 is not a table"),
        (change('name = "open"', 'nmae = "open"'), "[[load]] 2: unknown key 'nmae'"),
        (change('name = "open"', 'name = "alone"'), "[[load]] 2: 'name' is 'alone', as of one before"),
        (change('schedule = "closed(1)"', ""), "[[load]] 1: 'schedule' is missing"),
        (change("requests = 7", ""), "[[load]] 2: 'requests' is missing"),
        (change("requests = 7", "requests = 0"), "[[load]] 2: 'requests' for medium is 0; the least is 1"),
        (change("requests = 7", "requests = 0.5"), "[[load]] 2: 'requests' is 0.5, not a whole number"),
        (change("requests = 7", "requests = {}"), "[[load]] 2: 'requests' is empty"),
        (change("requests = 7", "requests = { small = 7 }"), "differ in medium, small; name the same sizes in both"),
        (change("small = 5 }", "large = 5 }"), "[[load]] 1: 'requests': unknown key 'large'; known: medium, small"),
        (change("requests = 7", "requests = 7\nwarmup = 1.5"), "[[load]] 2: 'warmup' is 1.5, not a whole number"),
        (change("poisson(50)", "poisson(0)"), "[[load]] 2: 'schedule' for medium: schedule 'poisson(0)': 'rate' must"),
        (change('"closed(1)"', '"closed"'), "[[load]] 1: 'schedule' for medium: schedule 'closed' lacks 'n'"),
        (change("warmup = 2", "warmup = -2"), "[[load]] 1: 'warmup' is -2; the least is 0"),
        (change("requests = 7", "requests = 7\nat_most_s = 0"), "[[load]] 2: 'at_most_s' is 0; give the seconds"),
        (change("calibration_probes = 12", "warmup_s = -1"), "'warmup_s' is -1; give the seconds"),
        (change("calibration_probes = 12", "rounds = 0"), "'rounds' is 0; the least is 1"),
        (change("calibration_probes = 12", "senders = -1"), "'senders' is -1; the least is 0"),
        (change("calibration_probes = 12", "senders = 1000"), "'senders' is 1000; that are processes"),
        (change("calibration_probes = 12", "allow_saturated = 1"), "'allow_saturated' is 1, not true or false"),
        (change("calibration_probes = 12", "thresholds = 3"), "'thresholds' is 3, not a table"),
        (change("[targets]", "[thresholds]\np98_ms = 3\n[targets]"), "[thresholds]: unknown key 'p98_ms'; known: drop"),
        (change("[targets]", "[thresholds]\np99_ms = -3\n[targets]"), "[thresholds]: 'p99_ms' for medium is -3; give"),
        (change("requests = 7", "requests = 7\nthresholds = { p99_ms = true }"), "'p99_ms' is True, not a number"),
        (change("requests = 7", "requests = 7\nthresholds = { p99_ms = { tiny = 1 } }"), "'p99_ms': unknown key 'ti"),
        (change("poisson(50)", "offline(5)"), "'requests' for medium is 7, and 'offline(5)' has 5; leave 'req"),
        (change("poisson(50)", "replay(gone.csv)"), "'schedule' for medium: the trace "),
    ],
)  # fmt: skip
def test_every_slip_is_named_with_its_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(PlanError) as caught:
        load_plan(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_plan_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"missing\.toml cannot be read: No such file"):
        load_plan(tmp_path / "missing.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    with pytest.raises(PlanError, match=r"latin\.toml is not TOML"):
        load_plan(tmp_path / "latin.toml")
