"""Energy meters: read from a powercap tree, and subtracted over a wrap."""

from __future__ import annotations

from pathlib import Path

from loadgen import contention, energy
from loadgen.energy import Meter


def _zone(root: Path, folder: str, name: str, uj: int, wraps: int) -> None:
    place = root / folder
    place.mkdir()
    for file, text in (("name", name), ("energy_uj", str(uj)), ("max_energy_range_uj", str(wraps))):
        (place / file).write_text(f"{text}\n")


def test_packages_are_read_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    # Given two packages, a part of one, and something else's folder
    _zone(tmp_path, "intel-rapl:0", "package-0", 5, 100)
    _zone(tmp_path, "intel-rapl:0:0", "core", 4, 100)
    _zone(tmp_path, "intel-rapl:1", "package-1", 7, 100)
    (tmp_path / "dtpm").mkdir()
    # and the whole platform's, of which all these are parts
    _zone(tmp_path, "intel-rapl:2", "psys", 50, 100)
    # When they are read
    found = energy.read(tmp_path)
    # Then packages are what is there
    assert found == {"cpu package-0": Meter(5, 100), "cpu package-1": Meter(7, 100)}


def test_a_meter_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", "package-0", 5, 100)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number\n")
    assert energy.read(tmp_path) == {}
    assert energy.read(tmp_path / "nowhere") == {}


def test_what_was_spent_survives_a_counter_that_begins_anew() -> None:
    before = {"a": Meter(90_000_000, 100_000_000), "b": Meter(1_000_000, 0), "gone": Meter(1, 0)}
    after = {"a": Meter(5_000_000, 100_000_000), "b": Meter(3_500_000, 0), "new": Meter(9, 0)}
    assert energy.spent_j(before, after) == {"a": 15.0, "b": 2.5}


def test_an_account_has_joules_per_request_only_where_there_is_a_meter() -> None:
    # Given readings with a meter, and without
    begin = contention.Snapshot({}, None, {"cpu": Meter(0, 0)})
    end = contention.Snapshot({}, None, {"cpu": Meter(6_000_000, 0)})
    bare = contention.Snapshot({}, None)
    # When rounds are accounted for, and put together by their requests
    first = contention.account(begin, end, 3, 1.0)
    second = contention.account(begin, end, 1, 1.0)
    # Then what was spent is divided by all requests
    assert first["energy"] == [{"meter": "cpu", "j_per_request": 2.0}]
    assert contention.together([(first, 3, 1.0), (second, 1, 1.0)])["energy"] == [
        {"meter": "cpu", "j_per_request": 3.0}
    ]
    assert "energy" not in contention.account(bare, bare, 3, 1.0)
