"""Compiled engines on disk: compiling one takes minutes, and it is good for one GPU and one set of versions only.

A file per key, named after the model and a digest of the key. It begins with the key and a checksum, so that a damaged
file, or one that was renamed, is not handed to a deserializer. Files appear whole (written beside, then renamed).

An engine is code that runs with the service's rights: whoever can write into the folder can run anything. So the
folder must belong to the service's user or to root, and not everybody may write there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from services.accounting import Clock, monotonic_ns
from services.errors import ConfigurationError
from services.inference.backends import files

_log = logging.getLogger(__name__)

_MAGIC = b"beyond-inference engine 1\n"
_LONGEST_WAIT_S = 3600.0  # for another process that compiles the same engine


class EngineKey(NamedTuple):
    """All that an engine depends on. `model`: sha256 of the ONNX file; `capability`: the GPU's, e.g. "9.0"."""

    model: str
    gpu: str
    capability: str
    tensorrt: str
    cuda: str
    precision: str
    max_batch: int
    item: tuple[int, ...]  # the recipe's shape, which fills the dimensions that the model leaves open
    workspace_mib: int

    @property
    def text(self) -> bytes:
        """One line of JSON; the same key gives the same."""
        return json.dumps(self._asdict(), sort_keys=True).encode() + b"\n"

    def filename(self, name: str) -> str:
        """`name`: the model's, for whoever looks into the folder."""
        readable = "".join(c if c.isalnum() or c in "-._" else "_" for c in name)[:80]
        return f"{readable}-{hashlib.sha256(self.text).hexdigest()[:32]}.engine"


def default_folder() -> Path:
    """In the temporary folder, one per user: it is there in every container, and lost with it."""
    return Path(tempfile.gettempdir()) / f"beyond-inference-engines-{os.getuid()}"


class EngineCache:
    """One folder. Safe between threads and processes."""

    def __init__(self, folder: Path, clock: Clock = monotonic_ns, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises `ConfigurationError` where the folder cannot be used, or somebody else may write into it."""
        self._folder = folder
        self._clock = clock
        self._sleep = sleep
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
        except OSError as error:
            raise ConfigurationError(f"the folder for engines {folder} cannot be used: {error}; {_REMEDY}") from None
        if found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH:
            raise ConfigurationError(
                f"others can write into the folder for engines {folder}, and an engine is code that would run here; "
                f"take that right away, or {_REMEDY}"
            )

    def path(self, name: str, key: EngineKey) -> Path:
        """Where the engine of model `name` is, or would be."""
        return self._folder / key.filename(name)

    def load(self, name: str, key: EngineKey) -> bytes | None:
        """The engine; None where there is none, or none that is whole: then the log says so."""
        path = self.path(name, key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("engine %s cannot be read: %s; it is built anew", path, error)
            return None
        header = _MAGIC + key.text
        digest, engine = content[len(header) : len(header) + 32], content[len(header) + 32 :]
        if not content.startswith(header) or hashlib.sha256(engine).digest() != digest:
            _log.warning("engine %s is damaged, or not what its name says; it is built anew", path)
            return None
        return engine

    def store(self, name: str, key: EngineKey, engine: bytes) -> None:
        """A folder that is full costs the next start minutes, not this one its service: then the log says so."""
        path = self.path(name, key)
        try:
            files.write_whole(path, _MAGIC + key.text + hashlib.sha256(engine).digest(), engine)
        except OSError as error:
            _log.warning("engine %s cannot be kept: %s; the next start builds it again", path, error)

    @contextlib.contextmanager
    def building(self, name: str, key: EngineKey) -> Iterator[None]:
        """Hold the right to build this engine; waits for whoever has it.

        Two that compile at once on one GPU would disturb each other's timings, by which TensorRT chooses kernels.
        Raises `ConfigurationError` after an hour, and where the folder cannot be written to.
        """
        lock = self._folder / f"{key.filename(name)}.lock"
        try:
            with files.alone(lock, _LONGEST_WAIT_S, self._clock, self._sleep):
                yield
        except files.Busy:
            raise ConfigurationError(
                f"another process has been building this engine for {_LONGEST_WAIT_S / 60:.0f} minutes "
                f"(it holds {lock}); stop that process, or {_REMEDY}"
            ) from None
        except OSError as error:
            raise ConfigurationError(f"the folder for engines cannot be written to: {error}; {_REMEDY}") from None


_REMEDY = "name another folder (--engine-cache)"
