"""The images: a row each."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
BASE = "docker.io/library/python:3.11-slim-bookworm"
_JAEGER = "2.13.0"
_REDIS = "7.0.15"  # of Debian 12; images/redis/Dockerfile fails where it is another one
_KAFKA = re.search(
    r"kafka_2\.13</artifactId><version>([^<]+)", (ROOT / "services/local/pom.xml").read_text(encoding="utf-8")
).group(1)  # type: ignore[union-attr]


def cache() -> Path:
    """What is built or fetched once and kept; `BEYOND_CACHE` and `XDG_CACHE_HOME` move it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BEYOND_CACHE") or Path(base) / "beyond-inference")


class Image(NamedTuple):
    """`most_mb`: it must not be larger, unpacked, in MB (10^6 bytes); 0: no matter. `needs`: what makes the context."""

    reference: str
    dockerfile: str
    context: Path = ROOT
    target: str = ""
    most_mb: int = 0
    needs: str = ""


OURS: Mapping[str, Image] = {
    "preprocess": Image(
        f"docker.io/beyond-inference/preprocess:{VERSION}", "services/preprocess/Dockerfile", most_mb=350
    ),
    "inference": Image(
        f"docker.io/beyond-inference/inference:{VERSION}", "services/inference/Dockerfile", target="cpu", most_mb=600
    ),
    "loadgen": Image(f"docker.io/beyond-inference/loadgen:{VERSION}", "loadgen/Dockerfile", most_mb=450),
}
# Built only when named: 5 GB and more, for CUDA.
LARGE: Mapping[str, Image] = {
    "inference-torch": Image(
        f"docker.io/beyond-inference/inference:{VERSION}-torch", "services/inference/Dockerfile", target="torch"
    ),
    "inference-dali": Image(
        f"docker.io/beyond-inference/inference:{VERSION}-dali", "services/inference/Dockerfile", target="dali"
    ),
    "inference-tensorrt": Image(
        f"docker.io/beyond-inference/inference:{VERSION}-tensorrt", "services/inference/Dockerfile", target="tensorrt"
    ),
}
# Where the official ones cannot be had: of the same names, from what packages and sources give.
EQUIVALENTS: Mapping[str, Image] = {
    "kafka": Image(
        f"docker.io/apache/kafka:{_KAFKA}",
        "images/kafka/Dockerfile",
        cache() / f"kafka-{_KAFKA}",
        needs="from services.local import jars; jars.fetch()",
    ),
    "jaeger": Image(
        f"docker.io/jaegertracing/jaeger:{_JAEGER}",
        "images/jaeger/Dockerfile",
        cache() / f"jaeger-{_JAEGER}",
        needs="from services.local import jaeger; jaeger.build(print)",
    ),
    "redis": Image(f"docker.io/library/redis:{_REDIS}", "images/redis/Dockerfile", ROOT / "images" / "redis"),
}
ALL: Mapping[str, Image] = {**OURS, **LARGE, **EQUIVALENTS}
