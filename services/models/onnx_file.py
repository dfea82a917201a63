"""ONNX files that are built from weights of packages: written whole, and told apart by what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

_WEIGHTS, _EXPORTER = "weights_sha256", "exporter"


def properties(weights: str, exporter: str, license_: str) -> dict[str, str]:
    """What a file says of itself: the digest of its weights, which state of our code made it, whose it is."""
    return {_WEIGHTS: weights, _EXPORTER: exporter, "license": license_}


def write(out: Path, wanted: Mapping[str, str], build: Callable[[], onnx.ModelProto]) -> bool:
    """Write what `build` gives to `out`, atomically; False, and nothing is built, if it is there already.

    It is there if it has the weights and the exporter of `wanted`, as `properties` gives them.
    """
    if out.exists() and _is_current(out, wanted):
        return False
    model = build()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_bytes(model.SerializeToString(deterministic=True))
    temporary.replace(out)
    return True


def words(out: Path, *, written: bool) -> str:
    """For people, of a file that is there."""
    return f"{out}: {'written' if written else 'is there already'}, {out.stat().st_size / 1e6:.1f} MB\n"


def _is_current(path: Path, wanted: Mapping[str, str]) -> bool:
    try:
        found = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    except Exception:  # noqa: BLE001 # whatever is wrong with it, it is made anew
        return False
    return all(found.get(key) == wanted[key] for key in (_WEIGHTS, _EXPORTER))
