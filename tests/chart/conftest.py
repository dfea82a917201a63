"""The chart as Helm renders it, and what its tests ask of the objects."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.chart import helm

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "charts" / "beyond-inference"
PROFILES = sorted(CHART.glob("values-*.yaml"))
EXPERIMENTS = sorted((CHART / "experiments").glob("*.yaml"))
RELEASE, NAMESPACE = "suite", "vision"
PREFIX = "suite-beyond-inference"
KUBERNETES = "1.34.0"

Object = dict[str, Any]

# libyaml's, where it is there, is ten times as fast.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Refused(Exception):
    """Helm did not render it; the message is Helm's."""


@functools.cache
def executable() -> Path | None:
    return helm.find()


@functools.cache
def render(*arguments: str, kubernetes: str = KUBERNETES) -> tuple[Object, ...]:
    """The objects of a release. Raises `Refused`."""
    path = executable()
    assert path is not None
    done = subprocess.run(  # noqa: S603 # our own command
        [path, "template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", kubernetes, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise Refused(done.stderr)
    return tuple(found for found in yaml.load_all(done.stdout, _Loader) if found)


class Release(NamedTuple):
    """A rendered release."""

    objects: Sequence[Object]

    def all(self, kind: str) -> dict[str, Object]:
        """By name, less what all names begin with."""
        return {
            found["metadata"]["name"].removeprefix(PREFIX).removeprefix("-"): found
            for found in self.objects
            if found["kind"] == kind
        }

    def get(self, kind: str, name: str) -> Object:
        return self.all(kind)[name]

    def pods(self) -> Iterator[tuple[str, Object, Object]]:
        """Name, metadata and spec of every pod, or what makes pods."""
        for found in self.objects:
            name = f"{found['kind']}/{found['metadata']['name']}"
            if found["kind"] == "Pod":
                yield name, found["metadata"], found["spec"]
            elif found["kind"] in ("Deployment", "StatefulSet", "Job"):
                template = found["spec"]["template"]
                yield name, template["metadata"], template["spec"]

    def container(self, kind: str, name: str) -> Object:
        [container] = self.get(kind, name)["spec"]["template"]["spec"]["containers"]
        return dict(container)

    def environment(self, name: str) -> Mapping[str, str]:
        """Of a Deployment's container; of what is in a secret, where it is."""
        return {
            variable["name"]: variable["value"] if "value" in variable else json.dumps(variable["valueFrom"])
            for variable in self.container("Deployment", name)["env"]
        }


def release(*arguments: str) -> Release:
    return Release(render(*arguments))


def setting(*pairs: str) -> tuple[str, ...]:
    """`--set` for each."""
    return tuple(word for pair in pairs for word in ("--set", pair))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if executable() is None:
        skip = pytest.mark.skip(reason="no Helm here; `make helm` builds it, by Go")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)
