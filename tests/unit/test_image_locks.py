"""What the images' packages are locked to fits what the project asks for, without asking an index."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "images" / "requirements"
MARKERS = {"python_full_version": "3.11.0", "platform_system": "Linux", "sys_platform": "linux"}
# lock -> extras of the project beside what every service needs
EXTRAS = {
    "preprocess": ["kafka", "redis"],
    "inference-cpu": ["kafka", "redis", "onnxruntime"],
    "inference-torch": ["kafka", "redis", "onnxruntime", "torch"],
    "inference-dali": ["kafka", "redis", "onnxruntime", "torch", "dali"],
    "model": ["models"],
    "loadgen": ["kafka"],
}


class Pin(NamedTuple):
    version: str
    hashes: tuple[str, ...]


@cache
def pins(lock: str) -> dict[str, Pin]:
    """Package -> what it is locked to on Linux and Python 3.11."""
    text = (REQUIREMENTS / f"{lock}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, Pin] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line.split(" --hash")[0])
            if requirement.marker is None or requirement.marker.evaluate(MARKERS):
                [specifier] = requirement.specifier
                assert specifier.operator == "==", line
                hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
                found[canonicalize_name(requirement.name)] = Pin(specifier.version, hashes)
    return found


def wanted(extras: list[str]) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("lock", EXTRAS)
def test_a_lock_has_what_the_project_asks_for(lock: str) -> None:
    for requirement in wanted(EXTRAS[lock]):
        pin = pins(lock).get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement} is not in {lock}.txt: make lock"
        assert requirement.specifier.contains(pin.version), f"{pin.version} is not {requirement}: make lock"


@pytest.mark.parametrize("lock", sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
def test_every_locked_package_has_hashes(lock: str) -> None:
    assert pins(lock)
    for name, pin in pins(lock).items():
        assert pin.hashes, f"{name} in {lock}.txt has no hash"


def test_images_share_versions() -> None:
    # What crosses a hop is made and read by the same libraries
    for name, pin in pins("preprocess").items():
        for lock in EXTRAS:
            assert pins(lock).get(name, pin).version == pin.version, f"{name} differs in {lock}.txt"


def test_dali_is_all_that_its_image_has_beside_torchs() -> None:
    for name, pin in pins("inference-torch").items():
        assert pins("inference-dali")[name].version == pin.version


def test_what_is_not_locked_is_noticed() -> None:
    # The first test above can fail
    [requirement] = [r for r in wanted(["onnxruntime"]) if r.name == "onnxruntime"]
    assert canonicalize_name(requirement.name) not in pins("preprocess")


def relock(folder: Path, uv: str) -> int:
    """`images/lock.sh` in a project of its own, with an `uv` that is this shell script."""
    (folder / "images" / "requirements").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "images" / "lock.sh", folder / "images")
    (folder / "uv").write_text(f"#!/bin/bash\nset -eu\n{uv}\n", encoding="utf-8")
    (folder / "uv").chmod(0o755)
    return subprocess.run(  # noqa: S603 # our own script
        [folder / "images" / "lock.sh", folder / "uv"], capture_output=True, timeout=60, check=False
    ).returncode


_WRITES = 'while [ "$1" != --output-file ]; do shift; done; echo new > "$2"'


def test_locks_stay_when_the_index_does_not_answer(tmp_path: Path) -> None:
    old = tmp_path / "images" / "requirements" / "loadgen.txt"
    old.parent.mkdir(parents=True)
    old.write_text("old", encoding="utf-8")
    assert relock(tmp_path, f'case "$*" in *torch*) exit 1;; esac; {_WRITES}') != 0
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    assert old.read_text(encoding="utf-8") == "old"
    assert not list((tmp_path / ".cache" / "lock").iterdir())


def test_locks_are_replaced_and_those_of_nothing_go(tmp_path: Path) -> None:
    gone = tmp_path / "images" / "requirements" / "gone.txt"
    gone.parent.mkdir(parents=True)
    gone.touch()
    assert relock(tmp_path, _WRITES) == 0
    assert {path.name for path in gone.parent.iterdir()} == {path.name for path in REQUIREMENTS.glob("*.txt")}
    assert all(path.read_text(encoding="utf-8") == "new\n" for path in gone.parent.iterdir())
