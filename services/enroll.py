"""`python -m services.enroll`: who a face belongs to, learned from photographs by a door that serves task `faces`.

    python -m services.enroll --url grpc://127.0.0.1:8001 --gallery faces.npz "Eileen Collins=astronaut.jpg"

A photograph has one face: of several it could not be said whose the name is. A door reads its gallery when it starts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from services import transports, wire
from services.errors import ConfigurationError, InvalidInput, ServiceError
from services.messages import Array
from services.tasks.gallery import Gallery, read_gallery, write_gallery
from services.transports.transport import Transport

TASK = "faces"
_OUTPUTS = ("boxes", "embeddings", "model")


class Face(NamedTuple):
    """The only face of a photograph: `embedding` float32 [d], made by `model`."""

    model: str
    embedding: Array


def only_face(door: Transport, photograph: bytes, timeout_s: float = 30.0) -> Face:
    """Asks the door. Raises `InvalidInput` for no face and for several, and the `ServiceError` that it answers."""
    image = np.empty(1, dtype=np.object_)
    image[0] = photograph
    payload = wire.encode_request(TASK, "enroll", {"image": image}, _OUTPUTS)
    outputs = wire.decode_response(door.request(payload, {}, timeout_s).result(timeout_s + 5).payload).outputs
    count = outputs["boxes"].shape[1]
    if count != 1:
        raise InvalidInput(
            f"it shows {count} faces; give a photograph of one face"
            + (", cut out of this one" if count else ", 40 pixels wide or more, seen from the front")
        )
    return Face(bytes(outputs["model"][0, 0]).decode(), outputs["embeddings"][0, 0])


def enroll(door: Transport, path: Path, people: list[tuple[str, Path]]) -> Gallery:
    """Add them to the gallery at `path`, which is made where there is none; all or, where one fails, none.

    Raises `ConfigurationError` for files that cannot be used, and what `only_face` raises.
    """
    gallery = read_gallery(path) if path.exists() else None
    for name, file in people:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"the photograph {file} cannot be read: {error.strerror or error}") from None
        try:
            face = only_face(door, data)
        except InvalidInput as error:
            raise InvalidInput(f"the photograph {file}: {error.message}") from None
        if gallery is None:
            gallery = Gallery(face.model)
        if gallery.model != face.model:
            raise ConfigurationError(
                f"the gallery {path} holds embeddings of model '{gallery.model}', the door's are of '{face.model}', "
                "and the two have nothing in common; begin a new gallery"
            )
        gallery = gallery.enrolled(name, face.embedding)
    if gallery is None:
        raise ConfigurationError("nobody was named; give NAME=PHOTOGRAPH")
    write_gallery(path, gallery)
    return gallery


def _person(argument: str) -> tuple[str, Path]:
    name, separator, file = argument.partition("=")
    if not separator or not name or not file:
        raise argparse.ArgumentTypeError(f"'{argument}' is not NAME=PHOTOGRAPH, e.g. 'Eileen Collins=astronaut.jpg'")
    return name, Path(file)


def main(argv: list[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m services.enroll",
        description="Enroll people in a gallery, by photographs with one face each; ask a door that serves task faces. "
        "Doors that read the gallery (--gallery) know them from their next start on.",
    )
    parser.add_argument("--url", default="grpc://127.0.0.1:8001", help="of the door (default: %(default)s)")
    parser.add_argument("--gallery", type=Path, required=True, help="the file; made where there is none")
    parser.add_argument("people", nargs="+", type=_person, metavar="NAME=PHOTOGRAPH", help="a name may be given again")
    arguments = parser.parse_args(argv)
    try:
        door = transports.connect(arguments.url)
        try:
            gallery = enroll(door, arguments.gallery, arguments.people)
        finally:
            door.close()
    except ServiceError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    known = len(set(gallery.names))
    sys.stdout.write(f"{arguments.gallery}: {len(gallery.names)} faces of {known} people\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
