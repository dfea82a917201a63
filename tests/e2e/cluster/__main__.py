"""`python3 -m tests.e2e.cluster preflight|up|load|running|down`: see `--help`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from images.errors import ImageError
from tests.e2e.cluster import load, preflight
from tests.e2e.cluster.places import HERE, KUBECONFIG

DONE, FAILED, INTERRUPTED = 0, 1, 130
# Without values-local.yaml the collector's image is looked for in a registry, which cannot be reached from there.
INSTALL = f"""  export KUBECONFIG={KUBECONFIG}
  helm install beyond charts/beyond-inference -f charts/beyond-inference/values-cpu-small.yaml \\
    -f tests/e2e/values-local.yaml"""
_BUILD_S, _UP_S, _DOWN_S, _QUICK_S = 7200, 400, 120, 20


def main(argv: Sequence[str]) -> int:
    """The exit status: 0 done, 1 not, with the reason and the remedy on stderr."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.e2e.cluster",
        description="A real single-node Kubernetes in namespaces of its own, without a registry. Root, on Linux.",
    )
    parser.add_argument(
        "command",
        choices=("preflight", "up", "load", "running", "down"),
        help="preflight: what is missing, and Debian's packages installed; up: build, if need be, and start it; "
        "load: the images into it; running: status 0 if it is up; down: stop it and remove all of it",
    )
    command = parser.parse_args(argv).command
    try:
        return {"preflight": _preflight, "up": _up, "load": _load, "running": _running, "down": _down}[command]()
    except ImageError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _say(text: str) -> None:
    print(text, flush=True)


def _preflight() -> int:
    found = preflight.missing()
    tried: set[str] = set()
    while packages := sorted({item.package for item in found if item.package} - tried):
        _say(f"installing packages of Debian: {' '.join(packages)}")
        tried.update(packages)
        problem = preflight.install(packages, _say)
        if problem:
            print(f"apt-get says: {problem}", file=sys.stderr)
        found = preflight.missing()  # an engine that was missing may want something, too
    for item in found:
        print(f"cluster: missing: {item.what}\n  -> {item.remedy}", file=sys.stderr)
    return FAILED if found else DONE


def _up() -> int:
    status = _preflight() or _script("build.sh", _BUILD_S) or _script("up.sh", _UP_S)
    if status == DONE:
        _say(f"the cluster is up: export KUBECONFIG={KUBECONFIG}")
    return status


def _load() -> int:
    load.load(_say)
    _say(f"the images are in; the chart by hand, with a Helm of `make helm`:\n{INSTALL}")
    return DONE


def _running() -> int:
    return _script("running.sh", _QUICK_S)


def _down() -> int:
    return _script("down.sh", _DOWN_S)


def _script(name: str, limit_s: float) -> int:
    try:
        return subprocess.run([str(HERE / name)], timeout=limit_s, check=False).returncode  # noqa: S603 # our own
    except subprocess.TimeoutExpired:
        print(f"cluster: {name} did not end within {limit_s:.0f} s", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
