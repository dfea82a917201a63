"""The chart renders, with every profile and experiment, to what Kubernetes takes; and says of itself what is true."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from charts import readme
from loadgen.plan import load_plan
from services import tasks
from services.cut import Form, forms
from services.inference import backends
from services.local import jaeger, jars
from services.local.redis_server import FSYNC
from services.settings import PREFIX, InferenceSettings, PreprocessSettings, _fields, parse
from services.transports import TABLE
from services.transports.grpc import _parse as parse_grpc
from services.transports.kafka_client import MESSAGE_LIMIT, parse_url
from services.transports.redis_client import parse_url as parse_redis
from tests.chart.conftest import (
    CHART,
    EXPERIMENTS,
    PROFILES,
    ROOT,
    Object,
    Refused,
    executable,
    release,
    render,
    setting,
)

# The oldest that the chart takes, that of the cluster tests, the newest that the schemas know.
VERSIONS = ("1.28", "1.34", "1.37")
OTHERS_KINDS = {
    "keda.sh/v1alpha1": {"ScaledObject", "TriggerAuthentication"},
    "monitoring.coreos.com/v1": {"ServiceMonitor"},
}

EVERYTHING = setting(
    "load.enabled=true",
    "load.plan=x",
    "load.sampleRatio=0.5",
    "metrics.serviceMonitor.enabled=true",
    "metrics.dashboard.enabled=true",
    "preprocess.autoscaling.type=hpa",
    "preprocess.autoscaling.minReplicas=2",
    "inference.autoscaling.type=keda",
    "inference.autoscaling.minReplicas=2",
    "inference.gpu.count=2",
    "inference.device=cuda",
    "inference.runtimeClassName=nvidia",
    "inference.priorityClassName=high",
    "collector.tailSampling.enabled=true",
    "modelStore.type=image",
    "modelStore.image.repository=models",
    f"modelStore.sha256.a\\.onnx={'0' * 64}",
    "modelStore.inline=[a]",
    "global.imageRegistry=registry.example.org/team",
    "global.imagePullSecrets[0].name=registry",
    "preprocess.service.type=NodePort",
    "preprocess.service.nodePort=30001",
    "preprocess.extraEnv[0].name=A",
    "preprocess.extraEnv[0].value=b",
    "preprocess.extraVolumes[0].name=v",
    "preprocess.extraVolumes[0].emptyDir.medium=Memory",
    "preprocess.extraVolumeMounts[0].name=v",
    "preprocess.extraVolumeMounts[0].mountPath=/v",
    "networkPolicies.jaegerFrom[0].podSelector.matchLabels.a=b",
    "kafka.javaOptions[0]=-Dx=y",
    "kafka.persistence.storageClassName=fast",
    "commonLabels.team=vision",
)
# All that templates can do is in these.
CASES: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "everything": EVERYTHING,
    "fused": setting("models.efficientnet-lite0.link=fused", "kafka.mode=off", "collector.mode=off", "jaeger.mode=off"),
    "grpc": setting("models.efficientnet-lite0.link=grpc", "inference.autoscaling.type=hpa", "jaeger.mode=external")
    + setting("jaeger.external.endpoint=jaeger.tracing:4317", "networkPolicies.enabled=false"),
    "pvc": setting("modelStore.type=pvc", "modelStore.pvc.claimName=models", "modelStore.pvc.subPath=v1")
    + setting("kafka.persistence.enabled=false", "serviceAccount.create=false", "metrics.enabled=false"),
    "external": setting("kafka.mode=external", "kafka.external.bootstrap={a:9092,b:9093}", "collector.mode=external")
    + setting("collector.external.endpoint=collector.otel:4317"),
    "secured": setting("kafka.mode=external", "kafka.external.bootstrap={a:9093}", "kafka.external.security=SASL_SSL")
    + setting("kafka.external.existingSecret=user", "kafka.external.caSecret=ca", "kafka.external.clientSecret=client")
    + setting("inference.autoscaling.type=keda"),
    "direct": setting("collector.mode=off"),
    "pods": setting("load.enabled=true", "load.plan=x", "load.pods=3"),
    "both": setting("models.efficientnet-lite0.link=grpc", "models.efficientnet-lite0.serve={kafka,kafka-python}")
    + setting("kafka.partitions=4"),
    "redis": setting("models.efficientnet-lite0.link=redis", "redis.persistence.storageClassName=fast")
    + setting("redis.priorityClassName=high", "redis.nodeSelector.a=b", "inference.autoscaling.type=keda"),
    "redis without a volume": setting("models.efficientnet-lite0.link=kafka", "models.efficientnet-lite0.serve={redis}")
    + setting("redis.persistence.enabled=false", "redis.appendfsync=no", "models.efficientnet-lite0.cut=jpeg"),
    "redis, secured": setting("models.efficientnet-lite0.link=redis", "redis.mode=external", "kafka.mode=off")
    + setting("redis.external.address=r:6380", "redis.external.tls=true", "redis.external.existingSecret=user")
    + setting("redis.external.userKey=name", "redis.external.caSecret=ca", "redis.external.clientSecret=client"),
    "redis, secured and scaled": setting("models.efficientnet-lite0.link=redis", "redis.mode=external")
    + setting("redis.external.address=r:6380", "redis.external.tls=true", "redis.external.existingSecret=user")
    + setting("inference.autoscaling.type=keda"),
    "cuts": setting("models.efficientnet-lite0.link=redis", "models.efficientnet-lite0.cut=u8")
    + setting("models.depth.task=depth", "models.depth.link=grpc", "models.depth.cut=f16"),
}
VARIANTS = {
    **CASES,
    **{path.stem: ("-f", str(path)) for path in PROFILES},
    **{f"{path.stem} with load": ("-f", str(path), *setting("load.enabled=true")) for path in EXPERIMENTS},
}

_validated: set[str] = set()


def validate(found: Object, version: str) -> None:
    """Against Kubernetes' own schema; what was looked at once is not looked at again."""
    if found["apiVersion"] in OTHERS_KINDS:
        assert found["kind"] in OTHERS_KINDS[found["apiVersion"]]
        return
    key = f"{version} {json.dumps(found, sort_keys=True)}"
    if key not in _validated:
        kubernetes_validate.validate(found, version, strict=True)
        _validated.add(key)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_rendered_is_what_kubernetes_takes(variant: str) -> None:
    objects = release(*VARIANTS[variant]).objects
    assert objects
    for found in objects:
        for version in VERSIONS if variant in CASES else VERSIONS[1:2]:
            validate(found, version)
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(names) == len(set(names))
    for _, name in names:
        assert len(name) <= 63


def test_the_validator_would_notice() -> None:
    [deployment, *_] = release().all("Deployment").values()
    broken = json.loads(json.dumps(deployment))
    broken["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", [None, *PROFILES], ids=lambda path: path.stem if path else "defaults")
def test_lint(overlay: Path | None) -> None:
    path = executable()
    assert path is not None
    done = subprocess.run(  # noqa: S603 # our own command
        [path, "lint", "--strict", CHART, *(["-f", str(overlay)] if overlay else [])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_an_old_kubernetes_is_refused_as_the_chart_says() -> None:
    constraint = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["kubeVersion"]
    assert constraint == f">={VERSIONS[0]}.0-0"
    with pytest.raises(Refused, match=r"chart requires kubeVersion: >=1\.28"):
        render(kubernetes="1.27.9")


# --- versions --------------------------------------------------------------------------------------------------------


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == project
    assert values["kafka"]["image"]["tag"] == jars.VERSION
    assert values["jaeger"]["image"]["tag"] == jaeger.VERSION


# --- the services understand what they are told ----------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_services_understand_their_environment(variant: str) -> None:
    rendered = release(*VARIANTS[variant])
    for name in rendered.all("Deployment"):
        cls: Any = PreprocessSettings if name == "preprocess" else InferenceSettings
        if name in ("collector", "jaeger"):
            continue
        environment = {key: value for key, value in rendered.environment(name).items() if key.startswith(PREFIX)}
        settings = parse(cls, "", [], environ=environment)
        # An unknown variable would be nobody's
        assert set(environment) <= {f"{PREFIX}{field.upper()}" for field, _, _ in _fields(cls)}
        urls = [link.partition("=")[2] for link in settings.link] if name == "preprocess" else settings.consume
        for url in urls:
            scheme = url.partition(":")[0]
            assert scheme == "fused" or scheme in TABLE
            if scheme.startswith("kafka"):
                parse_url(url)
            elif scheme == "redis":
                parse_redis(url)
            elif scheme == "grpc":
                parse_grpc(url, {})
        if name == "preprocess":
            forms(settings.cut, [link.partition("=")[0] for link in settings.link])


def test_every_transport_between_processes_is_a_link_of_the_chart() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    model = schema["definitions"]["model"]["properties"]
    between = {scheme.replace("+", "-") for scheme in TABLE} - {"memory"}
    assert set(model["link"]["enum"]) == {"fused", *between}
    assert set(model["serve"]["items"]["enum"]) == between


def test_the_chart_knows_the_tasks_backends_and_choices_of_the_services() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(schema["definitions"]["model"]["properties"]["task"]["enum"]) == set(tasks.TABLE)
    inference, preprocess = (schema["properties"][name]["properties"] for name in ("inference", "preprocess"))
    assert set(inference["backend"]["enum"]) == {"", *backends.TABLE}
    choices = {name: spec.metadata["choices"] for name, _, spec in _fields(PreprocessSettings)}
    assert tuple(preprocess["decode"]["enum"]) == choices["decode"]
    assert tuple(schema["properties"]["logLevel"]["enum"]) == choices["log_level"]
    assert schema["definitions"]["model"]["properties"]["cut"]["enum"] == [form.value for form in Form]
    redis = schema["properties"]["redis"]["properties"]
    assert redis["appendfsync"]["enum"] == [*FSYNC, False]  # which YAML makes of a bare `no`


def test_what_the_chart_leaves_alone_of_links_over_redis_is_as_the_services_have_it() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["redis"]
    [link] = release(*setting("models.efficientnet-lite0.link=redis")).environment("preprocess")["BEYOND_LINK"].split()
    parsed, plain = parse_redis(link.partition("=")[2]), parse_redis("redis://r:1/efficientnet-lite0")
    assert parsed._replace(url="", host="", port=0) == plain._replace(url="", host="", port=0)
    assert (values["prefetch"], values["sessionMs"]) == (plain.prefetch, plain.session_ms)
    assert (values["backlog"], values["retentionS"]) == (plain.backlog, plain.retention_s)


def test_both_ends_of_a_link_through_kafka_name_one_topic_and_the_broker_takes_its_messages() -> None:
    rendered = release()
    [link] = rendered.environment("preprocess")["BEYOND_LINK"].split()
    assert link.partition("=")[2] == rendered.environment("inference-efficientnet-lite0")["BEYOND_CONSUME"]
    properties = rendered.get("ConfigMap", "kafka")["data"]["server.properties"]
    assert parse_url(link.partition("=")[2]).bootstrap in properties
    limits = [int(limit) for limit in re.findall(r"(?:message|fetch)\.max\.bytes=(\d+)", properties)]
    assert len(limits) == 2
    assert min(limits) > MESSAGE_LIMIT
    # A segment holds a message, and what a partition keeps is some segments
    segment, retention = (
        int(re.findall(rf"log\.{name}\.bytes=(\d+)", properties)[0]) for name in ("segment", "retention")
    )
    assert MESSAGE_LIMIT < segment < retention


# --- what the chart says of itself -----------------------------------------------------------------------------------


def test_the_schema_is_closed_and_knows_all_values() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def resolve(node: Any) -> Any:
        while "$ref" in node:
            found: Any = schema
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            node = found
        return node

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if "properties" in node and path != "/properties/inference/properties/extraEnv/items":
                assert node.get("additionalProperties") is False, path
            for key, below in node.items():
                walk(below, f"{path}/{key}")

    walk(schema, "")

    def compare(values: Any, node: Any, path: str) -> None:
        properties = resolve(node).get("properties")
        if properties is None or not isinstance(values, dict):
            return
        assert set(properties) == set(values) or path == "", f"{path}: {set(properties) ^ set(values)}"
        for key, value in values.items():
            compare(value, properties[key], f"{path}.{key}")

    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    del values["models"]
    values["probes"] = {}  # a probe may say more
    for name in ("preprocess", "inference", "kafka", "redis", "collector", "jaeger", "loadgen"):
        assert set(values[name]["resources"]) == {"requests", "limits"}
    compare({key: value for key, value in values.items() if key != "probes"}, schema, "")
    assert set(schema["properties"]) == {*values, "models"}
    # A model may say all that `inference` says, and what only a model has
    model = schema["definitions"]["model"]["properties"]
    assert set(model) == {*values["inference"], "enabled", "task", "model", "link", "cut", "serve"}


def test_the_readme_is_that_of_the_values() -> None:
    assert (CHART / "README.md").read_text(encoding="utf-8") == readme.document(CHART), "run `make chart-docs`"


def test_every_value_is_explained() -> None:
    assert {row.name for row in readme.rows(CHART)} == set(readme.leaves(CHART))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_has_a_plan_and_says_what_it_is_of(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    plan = tmp_path / "plan.toml"
    plan.write_text(yaml.safe_load(text)["load"]["plan"], encoding="utf-8")
    assert load_plan(plan).name == path.stem
    assert re.search(r"^# (E\d+ of the paper|What a hop costs)", text)


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    known = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE))
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"\b(?:beyond|rpc|messaging)_\w+(?=\{)", expression)}
    assert len(names) >= 15
    assert names <= known
