"""Which version this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Of the installed distribution, or that of a bare checkout."""
    try:
        return metadata.version("beyond-inference")
    except metadata.PackageNotFoundError:
        return "0.0.0"
