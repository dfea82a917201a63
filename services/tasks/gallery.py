"""Who is known: enrolled identities, each with the embeddings of one or more of their faces.

The file is numpy's `.npz`, read without pickle: `model` (the network's name in the models file, for embeddings of
different networks have nothing in common), `names` [m] and `embeddings` float32 [m, d], each of length 1.
"""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.errors import ConfigurationError
from services.messages import Array

NOBODY = -1.0  # the least cosine there is


class Match(NamedTuple):
    """The most alike of those enrolled, and the cosine between both; "" and `NOBODY` where nobody is."""

    name: str
    similarity: float


def _none() -> NDArray[np.float32]:
    return np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Gallery:
    """`names[i]` has the face `embeddings[i]`; a name may have several. `model`: the network that made them."""

    model: str
    names: tuple[str, ...] = ()
    embeddings: NDArray[np.float32] = field(default_factory=_none)

    def match(self, embedding: Array) -> Match:
        """Of one face, float [d], whatever its length."""
        if not self.names:
            return Match("", NOBODY)
        cosines = self.embeddings @ unit(embedding)
        best = int(cosines.argmax())  # ties go to who was enrolled first
        return Match(self.names[best], float(np.clip(cosines[best], -1, 1)))

    def enrolled(self, name: str, embedding: Array) -> Gallery:
        """With one more face of `name`. Raises `ConfigurationError` for a name or an embedding that cannot be kept."""
        if not name or any(ord(character) < 0x20 for character in name):
            raise ConfigurationError(f"the name {name!r} is empty or not printable; give a person's name")
        row = unit(embedding)[None]
        if not np.isfinite(row).all() or not row.any():
            raise ConfigurationError(
                f"the embedding of {name} is nothing that could be compared; is the model emulated?"
            )
        if self.names and row.shape[1] != self.embeddings.shape[1]:
            raise ConfigurationError(
                f"the embedding of {name} has {row.shape[1]} numbers, those of the gallery "
                f"{self.embeddings.shape[1]}: another network made them; begin a new gallery"
            )
        rows = np.concatenate([self.embeddings, row]) if self.names else row
        return Gallery(self.model, (*self.names, name), rows)


def unit(embedding: Array) -> NDArray[np.float32]:
    """The same direction with length 1; zeros, and what is not finite, stay as they are."""
    row: NDArray[np.float32] = np.asarray(embedding, np.float32)
    length = float(np.linalg.norm(row))
    return row / np.float32(length) if 0 < length < np.inf else row


def read_gallery(path: Path) -> Gallery:
    """Raises `ConfigurationError` for what is no such file."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            model, names, embeddings = str(file["model"]), file["names"], file["embeddings"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(
            f"the gallery {path} cannot be read: {error}; `python -m services.enroll` writes one"
        ) from None
    if (
        names.dtype.kind != "U"
        or embeddings.dtype != np.float32
        or embeddings.ndim != 2
        or names.shape != embeddings.shape[:1]
        or not np.isfinite(embeddings).all()
    ):
        raise ConfigurationError(
            f"the gallery {path} has names {names.dtype} {list(names.shape)} and embeddings {embeddings.dtype} "
            f"{list(embeddings.shape)}, which don't fit; `python -m services.enroll` writes one"
        )
    rows = [unit(row) for row in embeddings]
    return Gallery(model, tuple(names.tolist()), np.stack(rows) if rows else _none())


def write_gallery(path: Path, gallery: Gallery) -> None:
    """Atomically: a door that starts meanwhile reads the old one or the new one. Raises `ConfigurationError`."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        model=np.array(gallery.model),
        names=np.array(gallery.names, dtype=np.str_),
        embeddings=gallery.embeddings.astype(np.float32, copy=False),
    )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(f"the gallery {path} cannot be written: {error.strerror or error}") from None
