"""The images into the cluster of this machine, without a registry.

Only those that the cluster has not got yet: beside the cluster's state lies the id of what was loaded under a name.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from images import engine as engines
from images.errors import ImageError
from images.table import EQUIVALENTS, OURS
from tests.e2e.cluster.places import CLUSTER, HERE

_IMPORT_S = 600


def load(say: Callable[[str], None]) -> None:
    """Raises `ImageError`."""
    engine = engines.find()
    loaded = CLUSTER / "loaded"
    loaded.mkdir(exist_ok=True)
    for name, image in {**OURS, **EQUIVALENTS}.items():
        digest = engine.digest(image.reference)
        mark = loaded / name
        if not digest:
            raise ImageError(f"{engine.name} has no image {image.reference}; make images builds it")
        if mark.exists() and mark.read_text(encoding="utf-8") == digest:
            continue
        since = time.monotonic()
        archive = CLUSTER / f"{name}.tar"
        try:
            engine.save(image.reference, archive)
            done = subprocess.run(  # noqa: S603 # our own script
                [str(HERE / "ctr.sh"), "images", "import", str(archive)],
                capture_output=True,
                text=True,
                timeout=_IMPORT_S,
                check=False,
            )
        finally:
            archive.unlink(missing_ok=True)
        if done.returncode != 0:
            raise ImageError(f"{image.reference} cannot be loaded: {(done.stdout + done.stderr).strip()[-1000:]}")
        mark.write_text(digest, encoding="utf-8")
        say(f"loaded {name} in {time.monotonic() - since:.0f} s")
