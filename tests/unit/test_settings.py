"""Settings: flags over environment over defaults, and errors that name what to change."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from services.errors import ConfigurationError
from services.settings import EngineSettings, InferenceSettings, PreprocessSettings, cpu_limit, overridden, parse

CLASSES = [PreprocessSettings, InferenceSettings]


def names(cls: Any) -> list[str]:
    """Every field, those of nested settings included; secrets, which have no flag, not."""
    hints = get_type_hints(cls)
    return [
        name
        for field in fields(cls)
        if not field.metadata.get("secret")
        for name in (names(hints[field.name]) if is_dataclass(hints[field.name]) else [field.name])
    ]


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_without_anything(cls: Any) -> None:
    assert parse(cls, "", [], {}) == cls()


def test_a_flag_wins_over_the_environment_which_wins_over_the_default() -> None:
    environment = {"BEYOND_ADMISSION_LIMIT": "7", "BEYOND_TIMEOUT_S": "2.5", "UNRELATED": "x", "ADMISSION_LIMIT": "1"}
    settings = parse(PreprocessSettings, "", ["--admission-limit", "9"], environment)
    assert settings.admission_limit == 9
    assert settings.timeout_s == 2.5
    assert settings.door_threads == PreprocessSettings().door_threads


def test_nested_settings_are_flags_like_all_others() -> None:
    settings = parse(InferenceSettings, "", ["--max-batch", "8"], {"BEYOND_MAX_DELAY_MS": "1.5"})
    assert (settings.engine.max_batch, settings.engine.max_delay_ms) == (8, 1.5)
    assert settings.model == "efficientnet-lite0"


def test_what_may_be_given_several_times() -> None:
    several = parse(PreprocessSettings, "", ["--link", "a=fused:", "--link", "b=grpc://x:1"], {})
    assert several.link == ("a=fused:", "b=grpc://x:1")
    environment = {"BEYOND_LINK": " a=fused:  b=grpc://x:1 "}
    assert parse(PreprocessSettings, "", [], environment).link == ("a=fused:", "b=grpc://x:1")
    # The flags replace the environment, they don't add to it
    assert parse(PreprocessSettings, "", ["--link", "c=fused:"], environment).link == ("c=fused:",)


@pytest.mark.parametrize(
    ("argv", "environment", "says"),
    [
        (["--admission-limit", "many"], {}, "--admission-limit is 'many', not a number"),
        (["--admission-limit", "1.5"], {}, "--admission-limit is '1.5', not a number (int)"),
        (["--admission-limit", "0"], {}, "--admission-limit is 0; the least is 1"),
        ([], {"BEYOND_ADMISSION_LIMIT": "many"}, "BEYOND_ADMISSION_LIMIT is 'many', not a number"),
        ([], {"BEYOND_ADMISSION_LIMIT": ""}, "BEYOND_ADMISSION_LIMIT is '', not a number"),
        ([], {"BEYOND_MAX_BATCH": "-3"}, "BEYOND_MAX_BATCH is -3; the least is 1"),
        (["--timeout-s", "nan"], {}, "--timeout-s is nan"),
        (["--timeout-s", "inf"], {}, "--timeout-s is inf"),
        (["--sample-ratio", "1.5"], {}, "--sample-ratio is 1.5; the most is 1"),
        (["--log-level", "LOUD"], {}, "--log-level is 'LOUD'; use one of DEBUG, INFO, WARNING, ERROR"),
        ([], {"BEYOND_DECODE": "half"}, "BEYOND_DECODE is 'half'; use one of scaled, full"),
    ],
)
def test_a_wrong_value_is_named_with_its_source(argv: list[str], environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(PreprocessSettings, "", argv, environment)
    assert raised.value.message.startswith(says)


def test_a_wrong_variable_does_not_matter_where_a_flag_stands() -> None:
    assert parse(PreprocessSettings, "", ["--max-batch", "2"], {"BEYOND_MAX_BATCH": "x"}).engine.max_batch == 2


@pytest.mark.parametrize("argv", [["--no-such-flag", "1"], ["--admission", "3"], ["stray"]])
def test_an_unknown_or_shortened_flag_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(PreprocessSettings, "", argv, {})
    assert raised.value.code == 2
    assert argv[0] in capsys.readouterr().err


@pytest.mark.parametrize("cls", CLASSES)
def test_help_lists_every_field_with_its_default(cls: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(cls, "What it is.", ["--help"], {})
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "What it is." in text
    assert "BEYOND_LOG_LEVEL" in text  # how a flag becomes a variable
    for name in names(cls):
        assert f"--{name.replace('_', '-')} " in text
    assert text.count("(default: ") == len(names(cls))


def test_the_cpu_limit_is_at_least_one_and_at_most_what_there_is() -> None:
    assert 1 <= cpu_limit() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "nonsense"}, 64),
        ({}, 64),
    ],
)
def test_a_container_s_quota_counts_of_either_version_of_cgroups(
    files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_limit(tmp_path) == cpus


def test_a_query_overrides_what_it_names() -> None:
    common = EngineSettings(max_batch=2, threads=3)
    own = overridden(common, "max_batch=32&max_delay_ms=1.5", "link 'fused:'")
    assert (own.max_batch, own.max_delay_ms, own.threads) == (32, 1.5, 3)
    assert common.max_batch == 2


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("max_batch=many", "link 'fused:': max_batch is 'many', not a number"),
        ("max_batch=0", "link 'fused:': max_batch is 0; the least is 1"),
        ("max-batch=8", "link 'fused:' has unknown option 'max-batch'; known: backend, "),
        ("precision=half", "link 'fused:': precision is 'half'; use one of float32, "),
        ("max_batch=", "link 'fused:': max_batch is '', not a number"),
    ],
)
def test_a_query_that_is_wrong_is_named_with_its_source(query: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        overridden(EngineSettings(), query, "link 'fused:'")
    assert raised.value.message.startswith(says)
