"""Apache Kafka's jars: fetched once by Maven from Maven Central, into a cache of the user's."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from services.local.errors import LocalStackError

POM = Path(__file__).with_name("pom.xml")
VERSION = re.search(r"kafka_2\.13</artifactId><version>([^<]+)", POM.read_text(encoding="utf-8")).group(1)  # type: ignore[union-attr]
DOWNLOAD = f"Apache Kafka {VERSION}'s jars, 44 MB, from Maven Central"
NBYTES = 2 * 44_000_000  # Maven keeps a copy in its own cache, which mostly is on the same disk
_TIMEOUT_S = 600


def cache() -> Path:
    """The folder of the jars; `BEYOND_CACHE` and `XDG_CACHE_HOME` move it."""
    base = os.environ.get("BEYOND_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / (
        "beyond-inference"
    )
    return Path(base) / f"kafka-{VERSION}"


def complete(folder: Path) -> bool:
    """Whether the jars are there, for this pom."""
    marker = folder / ".complete"
    return marker.exists() and marker.read_text(encoding="utf-8") == POM.read_text(encoding="utf-8")


def fetch() -> Path:
    """The folder with the jars, fetched if need be; safe against interruption and a second process.

    Raises `LocalStackError` where Maven is missing or fails.
    """
    folder = cache()
    if complete(folder):
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise LocalStackError(
            "Maven is missing, which fetches Kafka's jars; on Debian: apt install maven; "
            "or name a running broker: --kafka host:port"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete(folder):  # another process was faster
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            shutil.copy(POM, work)
            command = [maven, "-B", "-q", "dependency:copy-dependencies", f"-DoutputDirectory={work}/jars"]
            try:
                done = subprocess.run(  # noqa: S603 # our own command
                    command, cwd=work, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
                )
            except subprocess.TimeoutExpired:
                raise LocalStackError(f"Maven did not fetch Kafka's jars within {_TIMEOUT_S} s") from None
            if done.returncode != 0:
                lines = (done.stdout + done.stderr).strip().splitlines()
                raise LocalStackError("Maven could not fetch Kafka's jars:\n" + "\n".join(lines[-10:]))
            jars = Path(work) / "jars"
            (jars / ".complete").write_text(POM.read_text(encoding="utf-8"), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            jars.rename(folder)
    return folder
