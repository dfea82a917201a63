"""`python3 -m images build|push|save|sizes`: see `--help`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from images import engine as engines
from images.base import base
from images.engine import Engine
from images.errors import ImageError
from images.table import ALL, EQUIVALENTS, OURS, ROOT, Image

DONE, FAILED, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 done, 1 not, with the reason on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        engine = engines.find(arguments.engine)
        chosen = {name: ALL[name] for name in arguments.names or arguments.default}
        arguments.action(engine, chosen, arguments)
    except ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python3 -m images", description="The project's container images.")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    actions = {
        "build": (_build, "build images and say how large they are", list(OURS)),
        "third-party": (_third_party, "pull the third-party images, or build their equivalents", list(EQUIVALENTS)),
        "push": (_push, "push images to a registry", list(OURS)),
        "save": (_save, "write images as archives", [*OURS, *EQUIVALENTS]),
    }
    for name, (action, help_, default) in actions.items():
        command = commands.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
        command.set_defaults(action=action, default=default)
        command.add_argument(
            "names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)} (default: {' '.join(default)})"
        )
        command.add_argument("--engine", default="", help="docker, podman or buildah (default: the first that works)")
        if name in ("build", "third-party"):
            command.add_argument("--base", default="", help="the base image (default: pulled, or made)")
        if name == "push":
            command.add_argument(
                "--registry", required=True, help="goes in front of the names, e.g. registry.example/team"
            )
        if name == "save":
            command.add_argument("--folder", type=Path, required=True, help="where the archives are written")
    return root


def _say(text: str) -> None:
    print(text, flush=True)


def _build(engine: Engine, chosen: Mapping[str, Image], arguments: argparse.Namespace) -> None:
    _make(engine, chosen, arguments.base)
    too_large = []
    for name, image in chosen.items():
        mb = engine.size(image.reference) / 1e6
        _say(f"{name:<16} {mb:6.0f} MB{f' (at most {image.most_mb})' if image.most_mb else '':<16} {image.reference}")
        if image.most_mb and mb > image.most_mb:
            too_large.append(name)
    if too_large:
        raise ImageError(
            f"larger than they may be: {', '.join(too_large)}; see what grew, or raise most_mb in images/table.py"
        )


def _make(engine: Engine, chosen: Mapping[str, Image], given: str) -> None:
    reference = given or base(engine, _say)
    for name, image in chosen.items():
        _say(f"building {name} with {engine.name}")
        since = time.monotonic()
        if image.needs:
            _prepare(image.needs)
        engine.build(ROOT / image.dockerfile, image.context, image.reference, image.target, [f"BASE_IMAGE={reference}"])
        _say(f"built {name} in {time.monotonic() - since:.0f} s")


def _third_party(engine: Engine, chosen: Mapping[str, Image], arguments: argparse.Namespace) -> None:
    for name, image in chosen.items():
        if engine.has(image.reference):
            continue
        _say(f"pulling {image.reference}")
        if not engine.pull(image.reference):
            _make(engine, {name: image}, arguments.base)


def _prepare(needs: str) -> None:
    """What the context is made of; by the local stack's own code, as a process of its own, in the project's folder."""
    done = subprocess.run([sys.executable, "-c", needs], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 # our own
    if done.returncode != 0:
        raise ImageError((done.stderr.strip().splitlines() or ["no reason given"])[-1])


def _push(engine: Engine, chosen: Mapping[str, Image], arguments: argparse.Namespace) -> None:
    for name, image in chosen.items():
        destination = f"{arguments.registry.rstrip('/')}/{image.reference.removeprefix('docker.io/')}"
        _say(f"pushing {name} to {destination}")
        engine.push(image.reference, destination)


def _save(engine: Engine, chosen: Mapping[str, Image], arguments: argparse.Namespace) -> None:
    """Only what has changed since: beside each archive lies the id of what is in it."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, image in chosen.items():
        archive, mark = (arguments.folder / f"{name}.{suffix}" for suffix in ("tar", "id"))
        digest = engine.digest(image.reference)
        if not digest:
            raise ImageError(f"{engine.name} has no image {image.reference}; make images builds it")
        if archive.exists() and mark.exists() and mark.read_text(encoding="utf-8") == digest:
            continue
        _say(f"saving {name}")
        mark.unlink(missing_ok=True)
        engine.save(image.reference, archive)
        mark.write_text(digest, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
