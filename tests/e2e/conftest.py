"""A cluster, the suite installed in it once for all tests, and removed.

`BEYOND_E2E` says which: `local`, that of `make cluster-up`, or `given`, that of KUBECONFIG, with images from
BEYOND_E2E_REGISTRY and with further values, files separated by blanks, from BEYOND_E2E_VALUES (`make e2e` sets them).
Without it these tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart import helm
from tests.e2e.cluster.places import KUBECONFIG
from tests.e2e.kubernetes import CHART, Cluster, Failed, Release, kill, kubectl

_HERE = Path(__file__).parent
_STORY = _HERE.parents[1] / "results" / "e2e"


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    which = os.environ.get("BEYOND_E2E", "")
    if which not in ("local", "given"):
        pytest.skip("no cluster was named: make e2e")
    environment = dict(os.environ)
    if which == "local":
        if not KUBECONFIG.exists():
            pytest.fail("no cluster runs on this machine: make cluster-up", pytrace=False)
        environment["KUBECONFIG"] = str(KUBECONFIG)
    client = kubectl()
    if client is None:
        pytest.fail("kubectl is missing", pytrace=False)
    found = Cluster(client, str(helm.make()), environment, kill if which == "local" else None)
    try:
        found.kubectl("get", "nodes", limit_s=20)
    except Failed as failed:
        pytest.fail(f"the cluster does not answer: {failed}", pytrace=False)
    return found


@pytest.fixture(scope="session")
def release(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Release]:
    """In a namespace of its own that lets in only what Pod Security calls restricted.

    When a test has failed, what happened is written to results/e2e before all is removed.
    """
    namespace = f"beyond-e2e-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", namespace)
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    values = ["-f", str(CHART / "values-cpu-small.yaml"), "-f", str(_HERE / "values.yaml")]
    registry = os.environ.get("BEYOND_E2E_REGISTRY", "")
    if registry:
        for key in ("preprocess", "inference", "loadgen"):
            values += ["--set", f"{key}.image.repository={registry}/beyond-inference/{key}"]
    if os.environ.get("BEYOND_E2E") == "local":
        values += ["-f", str(_HERE / "values-local.yaml")]
    for file in os.environ.get("BEYOND_E2E_VALUES", "").split():
        values += ["-f", file]
    release = Release(cluster, "e2e", namespace, tuple(values))
    try:
        release.upgrade()
        yield release
    finally:
        if request.session.testsfailed:
            release.describe(_STORY)
        with contextlib.suppress(Failed):
            cluster.helm("uninstall", release.name, "--namespace", namespace, "--ignore-not-found", "--wait")
        cluster.kubectl("delete", "namespace", namespace, "--wait", limit_s=180)


@pytest.fixture(scope="session")
def door(cluster: Cluster, release: Release) -> str:
    """host:port, from outside: BEYOND_E2E_DOOR, else the node's port."""
    given = os.environ.get("BEYOND_E2E_DOOR")
    if given:
        return given
    addresses = cluster.get("nodes")["items"][0]["status"]["addresses"]
    [address, *_] = [a["address"] for a in addresses if a["type"] == "InternalIP"]
    [port, *_] = cluster.get("service", "-n", release.namespace, release.component("preprocess"))["spec"]["ports"]
    return f"{address}:{port['nodePort']}"
