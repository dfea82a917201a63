"""How images are made, as far as it can be told without an engine; `make images` and `make e2e` are the rest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from images import engine as engines
from images.__main__ import main
from images.engine import Engine
from images.errors import ImageError
from images.table import ALL, EQUIVALENTS, OURS, ROOT
from services.local import jaeger, jars
from services.version import version
from tests.e2e.cluster import pause_image, preflight
from tests.e2e.cluster.places import HERE


def fake(folder: Path, name: str, script: str) -> None:
    """A program of that name that does what `script` says."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but what a test puts there, and the usual tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_the_first_engine_that_works_is_taken(programs: Path) -> None:
    # Given docker without its daemon, as on many machines, and buildah
    fake(programs, "docker", "exit 1")
    fake(programs, "buildah", "exit 0")
    assert engines.find().name == "buildah"
    # But the one that is asked for is that one, or an error
    with pytest.raises(ImageError, match="docker does not run here"):
        engines.find("docker")


def test_without_an_engine_the_remedy_is_said(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build"]) == 1
    assert "install podman or buildah" in capsys.readouterr().err


def test_an_engine_that_is_not_known_is_refused(programs: Path) -> None:
    with pytest.raises(ImageError, match="'nerdctl' is no engine that is known; use one of docker, podman, buildah"):
        engines.find("nerdctl")


def test_what_an_engine_says_when_it_fails_is_passed_on(programs: Path) -> None:
    fake(programs, "podman", 'test "$1" = info || { echo "no space left on device" >&2; exit 125; }')
    with pytest.raises(ImageError, match=r"(?s)podman save .*no space left on device"):
        engines.find().save("docker.io/x:1", programs / "x.tar")


@pytest.mark.parametrize(("said", "nbytes"), [("334 MB", 334e6), ("1.25 GB", 1.25e9), ("942 KB", 942e3)])
def test_buildahs_sizes_are_read(programs: Path, said: str, nbytes: float) -> None:
    fake(programs, "buildah", f"""echo '[{{"size": "{said}"}}]'""")
    assert Engine("buildah", str(programs / "buildah")).size("x") == nbytes


def test_an_image_that_grew_too_large_is_refused(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Given an engine whose image of the door has 351 MB
    fake(programs, "docker", 'if [ "$2" = inspect ]; then echo 351000000; fi')
    assert main(["build", "preprocess", "--base", "python:3.11"]) == 1
    captured = capsys.readouterr()
    assert "preprocess          351 MB (at most 350)" in captured.out
    assert "larger than they may be: preprocess" in captured.err


def test_third_party_images_have_the_versions_of_the_local_stack_and_of_the_chart() -> None:
    assert EQUIVALENTS["kafka"].reference == f"docker.io/apache/kafka:{jars.VERSION}"
    assert EQUIVALENTS["jaeger"].reference == jaeger.IMAGE
    assert (EQUIVALENTS["kafka"].context, EQUIVALENTS["jaeger"].context) == (jars.cache(), jaeger.cache())
    values = (ROOT / "charts/beyond-inference/values.yaml").read_text(encoding="utf-8")
    for image in (EQUIVALENTS["kafka"], EQUIVALENTS["jaeger"], *OURS.values()):
        repository, _, tag = image.reference.removeprefix("docker.io/").partition(":")
        assert f"repository: {repository}\n" in values
        assert image in OURS.values() or f"tag: {tag}\n" in values
    assert OURS["preprocess"].reference.endswith(f":{version()}")


def test_the_image_of_redis_is_named_by_the_version_that_it_has_and_the_local_cluster_asks_for_it() -> None:
    repository, _, tag = EQUIVALENTS["redis"].reference.removeprefix("docker.io/").partition(":")
    # Debian has no newer one; the build fails where it is another
    assert f"grep -F 'v={tag} '" in (ROOT / EQUIVALENTS["redis"].dockerfile).read_text(encoding="utf-8")
    local = yaml.safe_load((ROOT / "tests/e2e/values-local.yaml").read_text(encoding="utf-8"))
    chart = yaml.safe_load((ROOT / "charts/beyond-inference/values.yaml").read_text(encoding="utf-8"))
    assert local["redis"]["image"] == {"repository": repository, "tag": tag}
    assert chart["redis"]["image"]["repository"] == repository


@pytest.mark.parametrize("name", ALL)
def test_dockerfiles_take_any_base_and_run_as_nobody_of_the_host(name: str) -> None:
    text = (ROOT / ALL[name].dockerfile).read_text(encoding="utf-8")
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm\n" in text
    users = [line.split()[1] for line in text.splitlines() if line.startswith("USER ")]
    assert users, "runs as root"
    assert all(int(uid) >= 1000 for user in users for uid in user.split(":"))


def test_the_pause_image_is_what_containerd_reads(tmp_path: Path) -> None:
    binary, archive = tmp_path / "pause", tmp_path / "pause.tar"
    binary.write_bytes(b"a program")
    pause_image.write(binary, "localhost/pause:1", archive)
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        [manifest] = json.loads(read("manifest.json"))
        config = json.loads(read(manifest["Config"]))
        [layer] = [read(name) for name in manifest["Layers"]]
    assert manifest["RepoTags"] == ["localhost/pause:1"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        [entry] = tar.getmembers()
    assert (f"/{entry.name}", entry.mode) == (config["config"]["Entrypoint"][0], 0o755)


def test_what_a_cluster_lacks_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [missing] = preflight.missing(root=True, system="Darwin")
    assert "make e2e KUBECONFIG=... REGISTRY=..." in missing.remedy
    [missing] = preflight.missing(root=False)
    assert "sudo" in missing.remedy
    # Without any program
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BEYOND_CACHE", str(tmp_path))
    found = {item.what: item for item in preflight.missing(lambda _: None, root=True)}
    assert {"containerd", "runc", "iptables", "a container engine", "Go"} <= set(found)
    assert found["runc"].remedy == "on Debian: apt install --no-install-recommends runc"
    assert not list(tmp_path.iterdir())  # and nothing was begun


def test_a_cluster_takes_no_folder_that_holds_something_else(tmp_path: Path) -> None:
    """Taking the cluster down removes its whole folder."""
    folder = tmp_path / "of mine"
    folder.mkdir()
    (folder / "letter").touch()
    done = subprocess.run(  # noqa: S603 # our own script
        [HERE / "up.sh"],
        env={**os.environ, "BEYOND_CLUSTER": str(folder), "BEYOND_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"{folder} is somebody else's, or has something in it; BEYOND_CLUSTER moves" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["letter"]
