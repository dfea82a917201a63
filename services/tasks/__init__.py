"""What is asked of an image: a table from task name to module. Adding one is one file and one row."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from services.errors import ConfigurationError
from services.messages import Recipe
from services.tasks.task import Task

TABLE: dict[str, str] = {"classification": "services.tasks.classification"}


class _Loader(Protocol):
    def load(self, model: str, recipe: Recipe, labels: tuple[str, ...]) -> Task: ...


def load(name: str, model: str, recipe: Recipe, labels: tuple[str, ...]) -> Task:
    """The task `name`, answered by `model`. Raises `ConfigurationError`."""
    if name not in TABLE:
        raise ConfigurationError(f"model '{model}' is for unknown task '{name}'; known: {', '.join(TABLE)}")
    return cast(_Loader, importlib.import_module(TABLE[name])).load(model, recipe, labels)
