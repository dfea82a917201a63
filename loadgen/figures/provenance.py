"""What a step's numbers were made by, beside its plan: its networks, and this project's code. As digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from services.models.catalogue import ModelSpec

_ROOT = Path(__file__).parents[2]
_CODE = ("protos", "services", "loadgen")
_OF_CODE = (".py", ".proto", ".xml")


def networks(models: Iterable[ModelSpec]) -> dict[str, str]:
    """By a model's name: of what the models file says of it, and of its files, wherever they lie."""
    return {model.name: _network(model) for model in models}


def code() -> str:
    """Of all modules and protocols that are measured, or that measure, and of what says which broker it is."""
    said = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in _OF_CODE:
                said.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return said.hexdigest()[:16]


def _network(model: ModelSpec) -> str:
    # Where the project lies, and what its recordings' folder is called, changes no number.
    about = dataclasses.asdict(dataclasses.replace(model, record=None))
    said = hashlib.sha256(json.dumps(about, default=_name, sort_keys=True).encode())
    for file in (model.onnx, model.exported, model.weights):
        if file is not None and file.is_file():
            status = file.stat()
            said.update(_of_file(file, status.st_mtime_ns, status.st_size))
    return said.hexdigest()[:16]


def _name(value: object) -> str:
    return value.name if isinstance(value, Path) else repr(value)


@cache
def _of_file(path: Path, _written_ns: int, _size: int) -> bytes:
    """A network has up to some 100 MB, and is of many steps."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# What this process runs, if files are edited later.
CODE_AT_START = code()
