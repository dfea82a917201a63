"""What is asked of an image: a table from task name to module. Adding one is one file and one row."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from services.errors import ConfigurationError
from services.tasks.task import Setup, Task

TABLE: dict[str, str] = {
    "classification": "services.tasks.classification",
    "segmentation": "services.tasks.segmentation",
    "detection": "services.tasks.detection",
    "depth": "services.tasks.depth",
    "faces": "services.tasks.faces",
    "identification": "services.tasks.identification",
}


class _Loader(Protocol):
    def load(self, setup: Setup) -> Task: ...


def load(name: str, setup: Setup) -> Task:
    """The task `name`, answered by `setup.model`. Raises `ConfigurationError`."""
    if name not in TABLE:
        raise ConfigurationError(f"model '{setup.model}' is for unknown task '{name}'; known: {', '.join(TABLE)}")
    return cast(_Loader, importlib.import_module(TABLE[name])).load(setup)
