"""What a real model took and answered, in a folder: times per batch size, and outputs by what went in.

    FOLDER/recording.json    which model, on what, and the median time of `infer` per batch size, in ms
    FOLDER/<digest>.npz      the outputs of one input

The digest is SHA-256 of the input's type, shape and bytes: what an image is called does not cross a hop, and need not
be unique; the same pixels prepared by the same recipe are the same input. It takes 0.4 ms for 600 kB (measured, on a
CPU with SHA instructions). Files appear whole, so several instances and processes may share a folder. It grows with
every input that is new: it is for a load of samples, not for a camera that never stops.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from services.errors import ConfigurationError
from services.inference.backends import files
from services.messages import Array, Tensors

_log = logging.getLogger(__name__)

FILE = "recording.json"


def digest(item: Array) -> str:
    """Names one input, `item`, without its batch dimension."""
    said = hashlib.sha256(f"{item.dtype.str}{list(item.shape)}".encode())
    said.update(np.ascontiguousarray(item).data)
    return said.hexdigest()


class Times(NamedTuple):
    """What was measured. `model`: a digest of the model's source; `on`: backend and device, in words."""

    model: str
    on: str
    platform: str
    ms: Mapping[int, float]  # batch size -> the median of `infer`

    @property
    def largest(self) -> int:
        """The largest batch that was measured."""
        return max(self.ms)

    def at(self, size: int) -> float:
        """Milliseconds for a batch of `size`, 1 to `largest`; between two that were measured, on the line between."""
        sizes = sorted(self.ms)
        index = bisect_left(sizes, size)
        above = sizes[index]
        if above == size:
            return self.ms[size]
        below = sizes[index - 1]
        return self.ms[below] + (self.ms[above] - self.ms[below]) * (size - below) / (above - below)


class Recording:
    """One folder, and what has been read of it."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder. Raises `ConfigurationError`."""
        self.folder = folder
        self._outputs: dict[str, Tensors] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"the recording {folder} cannot be made: {error}; correct record") from None

    def times(self) -> Times | None:
        """None where nothing was measured yet. Raises `ConfigurationError` for a file that is not one of ours."""
        path = self.folder / FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            times = Times(raw["model"], raw["on"], raw["platform"], {int(n): float(ms) for n, ms in raw["ms"].items()})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(f"{path} is no recording: {error!r}; remove it, or correct record") from None
        if 1 not in times.ms or not all(np.isfinite(ms) and ms > 0 for ms in times.ms.values()):
            raise ConfigurationError(f"{path} has times {dict(times.ms)}, of which none is for a batch of 1; remove it")
        return times

    def keep_times(self, times: Times) -> None:
        """Raises `ConfigurationError`."""
        try:
            files.write_whole(
                self.folder / FILE,
                json.dumps({**times._asdict(), "ms": {str(n): ms for n, ms in times.ms.items()}}, indent=2).encode(),
            )
        except OSError as error:
            raise ConfigurationError(f"the recording {self.folder} cannot be written: {error}") from None

    def outputs(self, name: str) -> Tensors | None:
        """Of the input with that digest, without a batch dimension; None where it was not recorded."""
        known = self._outputs.get(name)
        if known is not None:
            return known
        path = self.folder / f"{name}.npz"
        try:
            content = path.read_bytes()  # of a damaged file, numpy forgets to close what it opened
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                found = {key: archive[key] for key in archive.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            _log.warning("recorded outputs %s cannot be read: %s; they are computed anew", path, error)
            return None
        self._outputs[name] = found
        return found

    def keep(self, name: str, outputs: Tensors) -> None:
        """In memory and in the folder; where that is full, the log says so, and memory has to do."""
        self._outputs[name] = outputs
        buffer = io.BytesIO()
        np.savez(buffer, **outputs)  # type: ignore[arg-type] # names of outputs, not of savez's options
        try:
            files.write_whole(self.folder / f"{name}.npz", buffer.getvalue())
        except OSError as error:
            _log.warning("outputs cannot be recorded in %s: %s", self.folder, error)
