"""A service as a process: settings, logs, serving until it is told to end, draining, and what its exit status says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from services import logs
from services.errors import ConfigurationError
from services.serving import Service
from services.settings import CommonSettings, parse

Settings = TypeVar("Settings", bound=CommonSettings)


def run(
    name: str, cls: type[Settings], description: str, build: Callable[[Settings], Service], argv: Sequence[str]
) -> int:
    """Serve until SIGTERM; the exit status: 0 drained, 1 not everything was finished, 2 wrong settings."""
    try:
        settings = parse(cls, description, argv, program=f"python -m services.{name}")
        logs.configure(name, settings.log_level, settings.log_format)
        service = build(settings)
    except ConfigurationError as error:
        print(f"{name}: {error.message}", file=sys.stderr)  # noqa: T201 # it is a command line's
        return 2
    service.run()
    drained = service.stop(settings.drain_s)
    logging.shutdown()
    return 0 if drained else 1
