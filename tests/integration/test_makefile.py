"""Make sets environments up: not without room for them, and none that was left half-made is taken for a whole one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


def make(*arguments: str, temporary: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As a shell would run it, whoever runs these tests."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    if temporary is not None:
        env["TMPDIR"] = str(temporary)
    return subprocess.run(  # noqa: S603 # our own command
        ["make", "--no-print-directory", f"PYTHON={sys.executable}", *arguments],  # noqa: S607 # the one of the PATH
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_without_room_for_torch_nothing_is_downloaded(tmp_path: Path) -> None:
    # Given a disk that has not that much
    venv = tmp_path / "torch"
    done = make(
        f"TORCH_VENV={venv}", "TORCH_DOWNLOAD_GB=3.5", "TORCH_INSTALLED_GB=1e9", f"{venv}/.stamp", temporary=tmp_path
    )
    # Then the numbers, both places and what moves them are said, and nothing was begun
    assert done.returncode != 0
    assert "1000000003.5 GB are needed" in done.stderr
    assert f"3.5 GB in {tmp_path} (TMPDIR=folder moves it)" in done.stderr
    assert f"1000000000.0 GB in {venv} (make TORCH_VENV=folder moves it)" in done.stderr
    assert not venv.exists()


def test_a_half_made_environment_is_made_anew(tmp_path: Path) -> None:
    # Given an environment that was left while it was made, with a package that is not whole
    venv = tmp_path / "venv"
    half = venv / "half-a-package"
    venv.mkdir()
    for path in (half, venv / ".half-made"):
        path.touch()
    # When it is asked for, and what it needs cannot be had
    arguments = (f"VENV={venv}", "PIP_FLAGS=--quiet --no-index --disable-pip-version-check", f"{venv}/.stamp")
    done = make(*arguments)
    assert done.returncode != 0
    assert (venv / "bin" / "pip").exists(), done.stderr
    # Then nothing of the old one is in it, and neither is it taken for a whole one
    assert not half.exists()
    assert (venv / ".half-made").exists()
    assert not (venv / ".stamp").exists()
    # But one that somebody made by hand is kept
    (venv / ".half-made").unlink()
    half.touch()
    assert make(*arguments).returncode != 0
    assert half.exists()
