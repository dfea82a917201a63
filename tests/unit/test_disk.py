"""Room on disk: asked for before it is used, with numbers and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.local.disk import GB, Need, main, shortage


def one_disk(free: int, needs: list[Need]) -> str:
    return shortage(needs, free_bytes=lambda _: free, filesystem=lambda _: 1)


def test_places_on_one_disk_share_its_room(tmp_path: Path) -> None:
    needs = [Need(3 * GB, tmp_path / "tmp", "TMPDIR moves it"), Need(6 * GB, tmp_path / "venv", "VENV moves it")]
    assert one_disk(9 * GB, needs) == ""
    said = one_disk(9 * GB - 1, needs)
    for word in ("9.0 GB are free", "9.0 GB are needed", "3.0 GB in", "TMPDIR moves it", "6.0 GB in", "VENV moves it"):
        assert word in said


def test_each_disk_is_asked_for_what_goes_there(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    needs = [Need(3 * GB, first / "a" / "b", "move a"), Need(6 * GB, second, "move b")]
    free = {first: 3 * GB, second: 5 * GB}
    said = shortage(needs, free_bytes=lambda place: free[place], filesystem=lambda place: place.name == "first")
    assert f"disk of {second}: 5.0 GB are free, 6.0 GB are needed" in said
    assert "move a" not in said
    free[second] = 6 * GB
    assert not shortage(needs, free_bytes=lambda place: free[place], filesystem=lambda place: place.name == "first")


def test_the_command_asks_the_disk_that_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "not" / "there" / "yet")
    assert main(["--need", "0.000001", absent, "move it"]) == 0
    assert main(["--need", "1e9", absent, "HERE=elsewhere moves it", "--need", "1", str(tmp_path), "move it"]) == 1
    error = capsys.readouterr().err
    assert f"1000000000.0 GB in {absent} (HERE=elsewhere moves it)" in error
    assert "1000000001.0 GB are needed" in error
    assert not (tmp_path / "not").exists()
    for wrong in ("many", "inf", "nan"):
        with pytest.raises(SystemExit):
            main(["--need", wrong, absent, "move it"])
