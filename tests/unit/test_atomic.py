"""Files appear whole, or stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen import atomic


@pytest.mark.parametrize(("content", "read"), [("ä\n", "ä\n".encode()), (b"\xff\x00", b"\xff\x00")])
def test_a_file_and_its_folder_are_made(tmp_path: Path, content: str | bytes, read: bytes) -> None:
    path = tmp_path / "deep" / "file"
    atomic.write(path, content)
    assert path.read_bytes() == read
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic.write(path, "old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
