"""Compiled engines on disk: what a file is good for, and what happens to one that is not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from services.errors import ConfigurationError
from services.inference.backends.engine_cache import EngineCache, EngineKey, default_folder

KEY = EngineKey("ab" * 32, "NVIDIA H100 80GB HBM3", "9.0", "10.16.1.11", "13.2", "float16", 32, (3, 224, 224), 4096)
ENGINE = bytes(range(256)) * 100


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_an_engine_is_found_again_by_its_key(cache: EngineCache, tmp_path: Path) -> None:
    assert cache.load("net", KEY) is None
    cache.store("net", KEY, ENGINE)
    assert EngineCache(tmp_path / "engines").load("net", KEY) == ENGINE
    # And nothing else is left in the folder, which is the owner's only
    assert list((tmp_path / "engines").iterdir()) == [cache.path("net", KEY)]
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "cd" * 32},
        {"gpu": "NVIDIA A100"},
        {"capability": "8.0"},
        {"tensorrt": "10.16.1.12"},
        {"cuda": "12.9"},
        {"precision": "float32"},
        {"max_batch": 31},
        {"item": (3, 320, 320)},
        {"workspace_mib": 1024},
    ],
)
def test_whatever_an_engine_depends_on_makes_another_file(cache: EngineCache, changed: dict[str, object]) -> None:
    cache.store("net", KEY, ENGINE)
    other = KEY._replace(**changed)
    assert set(changed) <= set(KEY._fields)
    assert cache.path("net", other) != cache.path("net", KEY)
    assert cache.load("net", other) is None


def test_every_part_of_the_key_is_tried_above() -> None:
    assert len(KEY._fields) == 9


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
        lambda content: b"x" + content[1:],
        lambda content: content.replace(b'"9.0"', b'"8.9"'),
    ],
)
def test_a_damaged_file_is_said_to_be_and_built_anew(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    cache.store("net", KEY, ENGINE)
    path = cache.path("net", KEY)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert cache.load("net", KEY) is None
    assert "is damaged" in caplog.text
    assert "built anew" in caplog.text
    # And the new one takes its place
    cache.store("net", KEY, ENGINE)
    assert cache.load("net", KEY) == ENGINE


def test_a_name_is_readable_and_no_path() -> None:
    assert KEY.filename("efficientnet-lite0").startswith("efficientnet-lite0-")
    assert KEY.filename("../../etc/net").startswith(".._.._etc_net-")
    assert len(KEY.filename("n" * 500)) < 200


def test_a_full_disk_is_a_warning_and_leaves_nothing(
    cache: EngineCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with caplog.at_level(logging.WARNING):
        cache.store("net", KEY, ENGINE)
    assert "No space left" in caplog.text
    assert "builds it again" in caplog.text
    assert list(cache.path("net", KEY).parent.iterdir()) == []


def test_a_folder_that_everybody_writes_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"others can write.*--engine-cache"):
        EngineCache(folder)
    folder.chmod(0o770)
    EngineCache(folder)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be used.*--engine-cache"):
        EngineCache(tmp_path / "file" / "engines")


def test_one_builds_and_the_others_wait_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Given one who builds, and finishes while another waits
    first = EngineCache(tmp_path)
    building = first.building("net", KEY)
    building.__enter__()
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            building.__exit__(None, None, None)

    second = EngineCache(tmp_path, clock=lambda: 0, sleep=nap)
    with caplog.at_level(logging.INFO), second.building("net", KEY):
        assert len(naps) == 3
        # And another engine is not waited for
        with first.building("net", KEY._replace(max_batch=1)):
            pass
    assert caplog.text.count("waiting for another thread or process") == 1


def test_waiting_has_an_end(tmp_path: Path) -> None:
    now = [0]

    def nap(seconds: float) -> None:
        now[0] += int(seconds * 1e9)

    with (
        EngineCache(tmp_path).building("net", KEY),
        pytest.raises(ConfigurationError, match=r"for 60 minutes .*\.engine\.lock.*stop that process"),
        EngineCache(tmp_path, clock=lambda: now[0], sleep=nap).building("net", KEY),
    ):
        pass
    assert 3600e9 <= now[0] < 3602e9


def test_the_default_folder_is_the_users_own() -> None:
    assert default_folder().name.rpartition("-")[2].isdigit()
