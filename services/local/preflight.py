"""What this machine must have, and how to get what it lacks, before anything starts or downloads."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from services.local import jars, state
from services.local.broker import DATA_BYTES, container_engine, java_version
from services.local.deployments import TABLE, transport_of
from services.local.disk import GB, Need, shortage
from services.local.redis_server import REMEDY, redis_server

_FOLDER = Path(__file__).parents[2] / "models"
# What `make models` builds: model -> what the check is called, and the file.
BUILT = {
    "efficientnet-lite0": ("default model", _FOLDER / "efficientnet-lite0.onnx"),
    "mtcnn": ("face detector", _FOLDER / "mtcnn.onnx"),
}


class Check(NamedTuple):
    """`ok` None: not needed here. `download`: what will be fetched, empty for nothing. `optional`: all but what needs

    it runs without it.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str
    download: str = ""
    optional: bool = False


def preflight(
    transports: Sequence[str],
    *,
    external_broker: bool = False,
    external_redis: bool = False,
    optional: Collection[str] = (),
    models: Sequence[str] = ("efficientnet-lite0",),
    folder: Path = state.DEFAULT,
) -> list[Check]:
    """The checks for these transports; starts and downloads nothing. `folder`: where the broker's data will be.

    `optional`: transports that the rest does without.
    """
    checks = [
        Check(
            "Python",
            sys.version_info >= (3, 11),
            ".".join(map(str, sys.version_info[:3])),
            "install Python 3.11 or later; on Debian: apt install python3 python3-venv",
        ),
        _package("grpc", "grpcio", ""),
        _package("cv2", "opencv-python-headless", ""),
        _package("onnxruntime", "onnxruntime", "onnxruntime"),
    ]
    for name, file in (BUILT[model] for model in models if model in BUILT):
        checks.append(Check(name, file.exists(), file.name if file.exists() else "", "make models"))
    brokered = [transport_of(name) for name in transports if TABLE[name].broker == "kafka"]
    if "kafka" in brokered:
        checks.append(_package("confluent_kafka", "confluent-kafka", "kafka"))
    if "kafka-python" in brokered:
        checks += [_package("kafka", "kafka-python", "kafka"), _package("crc32c", "crc32c", "kafka")]
    if brokered and not external_broker:
        checks += _broker()
        checks.append(_disk(len(brokered) * len(models), folder))
    if any(TABLE[name].broker == "redis" for name in transports):
        redis = [_package("redis", "redis", "redis")]
        if not external_redis:
            redis.append(_redis())
        checks += [check._replace(optional="redis" in optional) for check in redis]
    return checks


def absent(transports: Sequence[str], *, external_redis: bool = False) -> dict[str, str]:
    """Those that cannot be run here though the rest can: transport -> why, and what remedies it."""
    if "redis" not in transports or external_redis or redis_server() is not None:
        return {}
    return {"redis": f"redis-server is missing; {REMEDY}"}


def _redis() -> Check:
    path = redis_server()
    return Check("redis-server", path is not None, path or "", REMEDY)


def _package(module: str, package: str, extra: str) -> Check:
    there = importlib.util.find_spec(module) is not None
    remedy = f"pip install 'beyond-inference[{extra}]'" if extra else "pip install beyond-inference"
    return Check(f"package {package}", there, "installed" if there else "", f"make setup, or {remedy}")


def _broker() -> list[Check]:
    """Java and Maven; a container engine will do instead."""
    executable = shutil.which("java")
    java = java_version(executable) if executable else None
    cached = jars.complete(jars.cache())
    has_java = java is not None and java >= 17
    has_jars = cached or shutil.which("mvn") is not None
    engine = None if has_java and has_jars else container_engine()
    if engine:
        kafka = (f"container image, by {Path(engine).name}", "the apache/kafka image, about 400 MB")
    else:
        kafka = (f"{jars.VERSION}, cached", "") if cached else (f"{jars.VERSION}, by Maven", jars.DOWNLOAD)
    return [
        Check(
            "Java 17+",
            True if has_java else None if engine else False,
            f"Java {java}" if java else "",
            "on Debian: apt install openjdk-17-jre-headless; or a container engine; or --kafka host:port",
        ),
        Check(
            "Kafka",
            bool(engine) or has_jars,
            kafka[0],
            "on Debian: apt install maven; or a container engine; or --kafka host:port",
            kafka[1],
        ),
    ]


def _disk(links: int, folder: Path) -> Check:
    """Room for the broker's data, of as many links, and for the jars."""
    needs = [Need(links * DATA_BYTES, folder, "--folder moves it")]
    if not jars.complete(jars.cache()):
        needs.append(Need(jars.NBYTES, jars.cache(), "BEYOND_CACHE moves it"))
    short = shortage(needs)
    return Check(
        "disk", not short, f"room for the broker's {links * DATA_BYTES / GB:.1f} GB", short.replace("\n", "; ")
    )


def table(checks: Sequence[Check]) -> str:
    """For people."""
    lines = []
    for check in checks:
        mark = {True: "ok", False: "NOT RUN" if check.optional else "MISSING", None: "not needed"}[check.ok]
        lines.append(f"  {mark:<10} {check.name:<32} {check.found if check.ok else ''}".rstrip())
        if check.ok is False:
            lines.append(f"  {'':<10} -> {check.remedy}")
        if check.ok and check.download:
            lines.append(f"  {'':<10} will download: {check.download}")
    return "\n".join(lines)


def missing(checks: Sequence[Check]) -> list[Check]:
    """What stands in the way."""
    return [check for check in checks if check.ok is False and not check.optional]
