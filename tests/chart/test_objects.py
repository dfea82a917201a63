"""What an SRE looks for in the rendered objects: security, probes, stopping, scaling, devices, who may talk to whom."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loadgen.targets import check_url
from services.serving import LIVENESS
from services.settings import KafkaSettings, RedisSettings
from services.transports.kafka_client import parse_url as parse_kafka
from services.transports.redis_client import parse_url as parse_redis
from tests.chart.conftest import NAMESPACE, PREFIX, Object, Refused, Release, release, render, setting
from tests.chart.test_rendering import VARIANTS

MODEL = "models.efficientnet-lite0"
INFERENCE = "inference-efficientnet-lite0"
GRPC = setting(f"{MODEL}.link=grpc")
FUSED = setting(f"{MODEL}.link=fused")
REDIS = setting(f"{MODEL}.link=redis")


def pod(rendered: Release, name: str, kind: str = "Deployment") -> Object:
    return dict(rendered.get(kind, name)["spec"]["template"]["spec"])


# --- security --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pod_fits_the_restricted_standard_and_has_no_token(variant: str) -> None:
    for name, _, spec in release(*VARIANTS[variant]).pods():
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), name
            assert container["command"], f"{name}: an image's entry point decides nothing"
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec["volumes"]} | {"data"}, name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"emptyDir", "configMap", "persistentVolumeClaim", "secret"}, name


def test_service_accounts_have_no_token_either() -> None:
    [account] = release().all("ServiceAccount").values()
    assert account["automountServiceAccountToken"] is False
    assert not release().all("Role")
    assert not release().all("ClusterRole")


def test_temporary_files_have_a_place_to_be() -> None:
    for name, _, spec in release().pods():
        for container in spec["containers"]:
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name  # noqa: S108


# --- images ----------------------------------------------------------------------------------------------------------


def images(rendered: Release) -> set[str]:
    return {
        container["image"]
        for _, _, spec in rendered.pods()
        for container in [*spec["containers"], *spec.get("initContainers", [])]
    }


def test_images_are_pinned_and_of_the_charts_version() -> None:
    version = release().get("Deployment", "preprocess")["metadata"]["labels"]["app.kubernetes.io/version"]
    assert {f"beyond-inference/{part}:{version}" for part in ("preprocess", "inference", "loadgen")} <= images(
        release()
    )
    for image in images(release()):
        assert re.fullmatch(r"[a-z0-9./-]+:\d[\w.-]*", image), image


def test_a_registry_goes_in_front_of_every_image() -> None:
    rendered = release(*VARIANTS["everything"])
    assert all(image.startswith("registry.example.org/team/") for image in images(rendered))
    for name, _, spec in rendered.pods():
        assert spec["imagePullSecrets"] == [{"name": "registry"}], name


def test_a_digest_stands_for_a_tag() -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    rendered = release(*setting(f"preprocess.image.digest={digest}"))
    assert rendered.container("Deployment", "preprocess")["image"] == f"beyond-inference/preprocess@{digest}"


# --- probes, stopping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["preprocess", INFERENCE])
def test_a_broker_that_is_away_makes_a_service_unready_and_restarts_nothing(name: str) -> None:
    container = release().container("Deployment", name)
    # Where no request is: a busy pod is not dead
    [port] = [port["containerPort"] for port in container["ports"] if port["name"] == "health"]
    environment = release().environment(name)
    assert environment["BEYOND_HEALTH"] == f"0.0.0.0:{port}"
    assert environment["BEYOND_LISTEN"] != environment["BEYOND_HEALTH"]
    assert container["readinessProbe"]["grpc"] == {"port": port}
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": port, "service": LIVENESS}
    # A model may take minutes to load
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pod_has_time_to_leave_to_finish_and_to_close(variant: str) -> None:
    rendered = release(*VARIANTS[variant])
    for name in rendered.all("Deployment"):
        if name in ("collector", "jaeger"):
            continue
        spec = pod(rendered, name)
        [container] = spec["containers"]
        [command, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == "sleep"
        drain = float(rendered.environment(name)["BEYOND_DRAIN_S"])
        # A request may take as long as the door lets it
        assert drain >= float(rendered.environment("preprocess")["BEYOND_TIMEOUT_S"])
        # Service.stop waits 5 s longer for its threads than it drains
        assert spec["terminationGracePeriodSeconds"] >= int(seconds) + drain + 5


def test_a_pod_drains_as_long_as_a_request_may_take_or_longer() -> None:
    def drains(*values: str) -> tuple[str, str]:
        rendered = release(*setting(*values))
        return (rendered.environment("preprocess")["BEYOND_DRAIN_S"], rendered.environment(INFERENCE)["BEYOND_DRAIN_S"])

    assert drains() == ("30", "30")
    assert drains("preprocess.timeoutS=7.5") == ("7.5", "7.5")
    assert drains("preprocess.timeoutS=90", "inference.drainS=120") == ("90", "120")
    assert drains(f"{MODEL}.drainS=45") == ("30", "45")


def test_callers_over_grpc_have_looked_for_pods_anew_before_one_is_told_to_stop() -> None:
    rendered = release(*GRPC, *setting("inference.connectionAgeS=30", "preprocess.connectionAgeS=7.5"))
    for name in ("preprocess", INFERENCE):
        age = float(rendered.environment(name)["BEYOND_CONNECTION_AGE_S"])
        [container] = pod(rendered, name)["containers"]
        # gRPC makes it up to a tenth longer; a headless name's addresses are up to 5 s old, plus one of the caller's
        assert int(container["lifecycle"]["preStop"]["exec"]["command"][1]) >= 1.1 * age + 6
    # Over a broker nobody looks
    for brokered in (release(), release(*REDIS)):
        [container] = pod(brokered, INFERENCE)["containers"]
        assert int(container["lifecycle"]["preStop"]["exec"]["command"][1]) <= 5


# --- links -----------------------------------------------------------------------------------------------------------


def test_kafka_is_the_default() -> None:
    rendered = release()
    assert rendered.environment("preprocess")["BEYOND_LINK"].startswith(
        f"efficientnet-lite0=kafka://{PREFIX}-kafka.{NAMESPACE}.svc.cluster.local:9092/efficientnet-lite0?partitions=8&"
    )
    assert "kafka" in rendered.all("StatefulSet")


def test_over_grpc_the_door_spreads_over_pods_behind_a_headless_service() -> None:
    rendered = release(*GRPC)
    url = f"grpc://{PREFIX}-{INFERENCE}.{NAMESPACE}.svc.cluster.local:8002"
    assert rendered.environment("preprocess")["BEYOND_LINK"] == f"efficientnet-lite0={url}"
    assert "BEYOND_CONSUME" not in rendered.environment(INFERENCE)
    for service in (INFERENCE, "preprocess-headless"):
        assert rendered.get("Service", service)["spec"]["clusterIP"] == "None"
    assert rendered.get("Service", "preprocess")["spec"].get("clusterIP") is None


def test_fused_is_one_pod_with_both() -> None:
    rendered = release(*FUSED, *setting("inference.threads=2", "inference.resources.limits.memory=1Gi"))
    assert set(rendered.all("Deployment")) == {"preprocess", "collector", "jaeger"}
    environment = rendered.environment("preprocess")
    assert environment["BEYOND_LINK"] == "efficientnet-lite0=fused:"
    assert environment["BEYOND_THREADS"] == "2"
    container = rendered.container("Deployment", "preprocess")
    assert container["image"].startswith("beyond-inference/inference:")
    assert container["command"] == ["python", "-m", "services.preprocess"]
    assert container["resources"]["limits"] == {"cpu": "4000m", "memory": "3072Mi"}
    assert container["resources"]["requests"] == {"cpu": "2000m", "memory": "1024Mi"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kafka", "grpc"),
        ("grpc", "kafka"),
        ("fused", "grpc"),
        ("kafka", "fused"),
        ("kafka", "redis"),
        ("redis", "kafka"),
        ("redis", "grpc"),
    ],
)
def test_a_link_is_changed_in_steps_of_which_each_leaves_old_and_new_doors_a_way(old: str, new: str) -> None:
    def ways(rendered: Release) -> set[str]:
        """What doors may use: consumers or servers that are there, and policies that let doors through."""
        out, into = edges(rendered)
        edge = out & into
        deployed = INFERENCE in rendered.all("Deployment")
        consumed = rendered.environment(INFERENCE).get("BEYOND_CONSUME", "").split() if deployed else []
        return {
            "fused",  # a door has its model with it
            *(["grpc"] if deployed and ("preprocess", INFERENCE, 8002) in edge else []),
            *(
                broker
                for broker, port in (("kafka", 9092), ("redis", 6379))
                if any(url.startswith(f"{broker}:") for url in consumed)
                and {("preprocess", broker, port), (INFERENCE, broker, port)} <= edge
                and broker in rendered.all("StatefulSet")
            ),
        }

    def step(link: str, *serve: str) -> Release:
        also = [f"{MODEL}.serve={{{','.join(serve)}}}"] if serve else []
        return release(*setting(f"{MODEL}.link={link}", *also))

    begin, end = step(old), step(new)
    assert begin.environment("preprocess")["BEYOND_LINK"] != end.environment("preprocess")["BEYOND_LINK"]
    first = step(old, *([new] if new != "fused" else []))
    second = step(new, *([old] if old != "fused" else []))
    assert {old} <= ways(begin)
    for rendered in (first, second):
        assert {old, new} <= ways(rendered)
    assert {new} <= ways(end)


def test_a_job_makes_the_topics_that_links_want_and_another_one_when_they_are_to_be_others() -> None:
    [first] = release().all("Job").values()
    [container] = first["spec"]["template"]["spec"]["containers"]
    assert container["command"][2:] == [release().environment(INFERENCE)["BEYOND_CONSUME"]]
    # Each revision has its own: one that failed is not what the next upgrade finds
    assert re.fullmatch(rf"{PREFIX}-topics-[0-9a-f]{{8}}-1", first["metadata"]["name"])
    [second] = release(*setting("kafka.partitions=16", "kafka.persistence.size=16Gi")).all("Job").values()
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert not release(*setting("kafka.topics.job=false")).all("Job")
    assert not release(*FUSED).all("Job")


def test_a_broker_is_installed_where_a_link_needs_it() -> None:
    assert "kafka" in release().all("StatefulSet")
    assert "kafka" in release(*GRPC, *setting(f"{MODEL}.serve={{kafka}}")).all("StatefulSet")
    for link in (GRPC, FUSED):
        assert not [found for found in release(*link).objects if "kafka" in found["metadata"]["name"]]


def test_a_door_on_a_gpu_has_one_and_the_image_with_torch() -> None:
    on_gpu = setting("preprocess.preprocessor=gpu", "preprocess.gpu.count=1")
    rendered = release(*GRPC, *on_gpu)
    container = rendered.container("Deployment", "preprocess")
    assert rendered.environment("preprocess")["BEYOND_PREPROCESSOR"] == "gpu"
    assert container["image"].endswith("/inference:0.1.0-torch")
    for kind in ("limits", "requests"):
        assert container["resources"][kind]["nvidia.com/gpu"] == 1
        assert container["resources"][kind].keys() >= {"cpu", "memory"}
    # There may be no second GPU for a pod more
    assert rendered.get("Deployment", "preprocess")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    # The inference service has its own image and no GPU
    other = rendered.container("Deployment", INFERENCE)
    assert other["image"].endswith("/inference:0.1.0")
    assert "nvidia.com/gpu" not in other["resources"]["limits"]
    # Without it, nothing of that
    container = release(*GRPC).container("Deployment", "preprocess")
    assert container["image"].endswith("/preprocess:0.1.0")
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_a_door_on_the_gpu_of_its_fused_model_shares_it() -> None:
    model = setting("inference.image.variant=torch", "inference.device=cuda", "inference.gpu.count=1")
    rendered = release(*FUSED, *model, *setting("inference.backend=torch", "preprocess.preprocessor=gpu"))
    container = rendered.container("Deployment", "preprocess")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith("/inference:0.1.0-torch")


@pytest.mark.parametrize("variant", ["", "torch", "tensorrt"])
def test_a_door_with_dali_has_the_image_with_dali_whatever_inference_has(variant: str) -> None:
    on_gpu = setting("preprocess.preprocessor=dali", "preprocess.gpu.count=1", f"inference.image.variant={variant}")
    rendered = release(*GRPC, *on_gpu)
    assert rendered.environment("preprocess")["BEYOND_PREPROCESSOR"] == "dali"
    assert rendered.container("Deployment", "preprocess")["image"].endswith("/inference:0.1.0-dali")
    assert rendered.container("Deployment", INFERENCE)["image"].endswith(f"/inference:0.1.0{variant and '-' + variant}")


def test_a_door_with_dali_and_its_fused_model_share_an_image_and_a_gpu() -> None:
    model = setting("inference.image.variant=dali", "inference.device=cuda", "inference.gpu.count=1")
    rendered = release(*FUSED, *model, *setting("inference.backend=torch", "preprocess.preprocessor=dali"))
    container = rendered.container("Deployment", "preprocess")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith("/inference:0.1.0-dali")


def test_doors_that_take_frames_meet_a_broker_whatever_the_links() -> None:
    # Given frames, and a link that needs no broker
    frames = (*GRPC, *setting("preprocess.frames.enabled=true"))
    rendered = release(*frames)
    # Then doors are told where, inference services are not
    url = rendered.environment("preprocess")["BEYOND_CONSUME"]
    parsed = parse_kafka(url)
    assert (parsed.topic, parsed.results, parsed.prefetch) == ("images", "results", 64)
    assert "BEYOND_CONSUME_TASK" not in rendered.environment("preprocess")
    assert "BEYOND_CONSUME" not in rendered.environment(INFERENCE)
    # And there is a broker, its topics are made, and the door, the Job and loads of frames may talk to it
    assert "kafka" in rendered.all("StatefulSet")
    [job] = rendered.all("Job").values()
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][2:] == [url]
    out, into = edges(rendered)
    kafka = {(name, "kafka", 9092) for name in ("preprocess", "topics", "load")}
    assert {edge for edge in out if edge[1] == "kafka"} == kafka
    assert kafka <= into
    # Without them there is nothing of all that
    assert "BEYOND_CONSUME" not in release(*GRPC).environment("preprocess")


def test_frames_are_of_the_client_the_topics_and_the_task_that_the_values_say() -> None:
    own = ("enabled=true", "client=kafka-python", "images=cameras", "results=answers", "task=classification")
    rendered = release(*FUSED, *setting(*(f"preprocess.frames.{value}" for value in own)))
    environment = rendered.environment("preprocess")
    assert environment["BEYOND_CONSUME"].startswith("kafka+python://")
    assert parse_kafka(environment["BEYOND_CONSUME"]).topics.keys() >= {"cameras", "answers"}
    assert environment["BEYOND_CONSUME_TASK"] == "classification"


def test_doors_that_take_frames_from_a_broker_with_secrets_get_them() -> None:
    secured = (
        "mode=external",
        "external.bootstrap={a:9093}",
        "external.security=SASL_SSL",
        "external.existingSecret=s",
    )
    rendered = release(*GRPC, *setting("preprocess.frames.enabled=true", *(f"kafka.{value}" for value in secured)))
    assert rendered.environment("preprocess")["BEYOND_KAFKA_PROTOCOL"] == "SASL_SSL"
    assert "BEYOND_KAFKA_PROTOCOL" not in rendered.environment(INFERENCE)


def test_a_broker_elsewhere_is_not_installed() -> None:
    rendered = release(*setting("kafka.mode=external", "kafka.external.bootstrap={a:9092,b:9093}"))
    assert not rendered.all("StatefulSet")
    assert "=kafka://a:9092,b:9093/" in rendered.environment("preprocess")["BEYOND_LINK"]


SECURED = (
    *setting("kafka.mode=external", "kafka.external.bootstrap={a:9093}", "kafka.external.security=SASL_SSL"),
    *setting("kafka.external.existingSecret=user", "kafka.external.passwordKey=key", "kafka.external.caSecret=ca"),
)


def kafka_environment(container: Mapping[str, Any]) -> dict[str, Any]:
    """What a container is told of brokers: a value, or the secret and its key."""
    found = {}
    for variable in container.get("env", ()):
        if variable["name"].startswith("BEYOND_KAFKA_"):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            found[variable["name"].removeprefix("BEYOND_KAFKA_")] = source or variable["value"]
    return found


def test_who_meets_a_broker_with_secrets_gets_them_and_nobody_else() -> None:
    rendered = release(*SECURED)
    met = {
        "PROTOCOL": "SASL_SSL",
        "MECHANISM": "SCRAM-SHA-512",
        "USER": {"name": "user", "key": "username"},
        "PASSWORD": {"name": "user", "key": "key"},
        "CA_FILE": "/etc/kafka-ca/ca.crt",
    }
    clients = [name for name, _, spec in rendered.pods() if kafka_environment(spec["containers"][0])]
    assert len(clients) == 3
    for name, _, spec in rendered.pods():
        [container, *_] = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        if name in clients:
            assert kafka_environment(container) == met
            assert mounts["kafka-ca"] == "/etc/kafka-ca"
            assert volumes["kafka-ca"]["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
            assert volumes["kafka-ca"]["secret"]["defaultMode"] == 0o440  # the pods' group is fsGroup
        else:
            assert "kafka-ca" not in volumes
    # Each knows its variables
    known = {variable.removeprefix("kafka_").upper() for variable in KafkaSettings.__dataclass_fields__}
    assert met.keys() <= known
    # And its way is open
    out, _ = edges(rendered)
    assert {source for source, target, port in out if (target, port) == ("*", 9093)} == {
        "preprocess",
        INFERENCE,
        "topics",
    }


def test_a_client_certificate_is_mounted_where_brokers_ask_for_one() -> None:
    tls = setting("kafka.external.security=SSL", "kafka.external.existingSecret=", "kafka.external.clientSecret=me")
    container = release(*SECURED, *tls).container("Deployment", "preprocess")
    assert kafka_environment(container) == {
        "PROTOCOL": "SSL",
        "CA_FILE": "/etc/kafka-ca/ca.crt",
        "CERTIFICATE_FILE": "/etc/kafka-client/tls.crt",
        "KEY_FILE": "/etc/kafka-client/tls.key",
    }
    assert "/etc/kafka-client" in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.parametrize("link", [GRPC, FUSED, ()])
def test_who_meets_no_broker_with_secrets_has_none(link: tuple[str, ...]) -> None:
    secured = () if not link else SECURED
    for _, _, spec in release(*secured, *link).pods():
        assert not kafka_environment(spec["containers"][0])
        assert "kafka-ca" not in [volume["name"] for volume in spec["volumes"]]


@pytest.mark.parametrize(
    ("mechanism", "sasl"),
    [("PLAIN", "plaintext"), ("SCRAM-SHA-256", "scram_sha256"), ("SCRAM-SHA-512", "scram_sha512")],
)
def test_keda_is_told_how_to_meet_a_broker_with_secrets(mechanism: str, sasl: str) -> None:
    """Names: https://keda.sh/docs/2.18/scalers/apache-kafka/"""
    keda = setting("inference.autoscaling.type=keda", f"kafka.external.mechanism={mechanism}")
    rendered = release(*SECURED, *keda)
    [trigger] = rendered.get("ScaledObject", INFERENCE)["spec"]["triggers"]
    assert trigger["metadata"]["sasl"] == sasl
    assert trigger["metadata"]["tls"] == "enable"
    [authentication] = rendered.all("TriggerAuthentication").values()
    assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
    assert authentication["spec"]["secretTargetRef"] == [
        {"parameter": "username", "name": "user", "key": "username"},
        {"parameter": "password", "name": "user", "key": "key"},
        {"parameter": "ca", "name": "ca", "key": "ca.crt"},
    ]
    # And not, where there is nothing to tell
    plain = release(*setting("inference.autoscaling.type=keda"))
    assert not plain.all("TriggerAuthentication")
    assert "authenticationRef" not in plain.get("ScaledObject", INFERENCE)["spec"]["triggers"][0]


def test_keda_needs_no_secret_for_brokers_whose_authority_is_public() -> None:
    values = ("kafka.mode=external", "kafka.external.bootstrap={a:9093}", "kafka.external.security=SSL")
    rendered = release(*setting(*values, "inference.autoscaling.type=keda"))
    [trigger] = rendered.get("ScaledObject", INFERENCE)["spec"]["triggers"]
    assert trigger["metadata"]["tls"] == "enable"
    assert "authenticationRef" not in trigger
    assert not rendered.all("TriggerAuthentication")


def test_the_brokers_data_are_on_a_volume_and_below_its_lost_and_found() -> None:
    kafka = release().get("StatefulSet", "kafka")
    assert kafka["spec"]["volumeClaimTemplates"][0]["spec"]["resources"] == {"requests": {"storage": "8Gi"}}
    [container] = kafka["spec"]["template"]["spec"]["containers"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
    [log_dirs] = re.findall(r"log\.dirs=(.*)", release().get("ConfigMap", "kafka")["data"]["server.properties"])
    assert log_dirs.startswith(f"{mount['mountPath']}/")
    ephemeral = release(*setting("kafka.persistence.enabled=false")).get("StatefulSet", "kafka")
    assert "volumeClaimTemplates" not in ephemeral["spec"]


# --- Redis -----------------------------------------------------------------------------------------------------------


def test_over_redis_both_ends_name_one_stream_and_nothing_is_of_kafka() -> None:
    rendered = release(*REDIS, *setting("redis.streamPrefix=vision:"))
    url = rendered.environment(INFERENCE)["BEYOND_CONSUME"]
    assert rendered.environment("preprocess")["BEYOND_LINK"] == f"efficientnet-lite0={url}"
    parsed = parse_redis(url)
    assert (parsed.address, parsed.stream) == (
        f"{PREFIX}-redis.{NAMESPACE}.svc.cluster.local:6379",
        "vision:efficientnet-lite0",
    )
    assert list(rendered.all("StatefulSet")) == ["redis"]
    assert not [found for found in rendered.objects if "kafka" in found["metadata"]["name"]]
    assert not rendered.all("Job")


def test_a_redis_is_installed_where_a_link_needs_it_and_where_it_is_elsewhere_it_is_not() -> None:
    assert set(release(*GRPC, *setting(f"{MODEL}.serve={{redis}}")).all("StatefulSet")) == {"redis"}
    for link in ((), GRPC, FUSED):
        assert "redis" not in release(*link).all("StatefulSet")
    rendered = release(*REDIS, *setting("redis.mode=external", "redis.external.address=r.example:6390"))
    assert not [found for found in rendered.objects if found["metadata"]["name"].endswith("-redis")]
    assert "=redis://r.example:6390/efficientnet-lite0?" in rendered.environment("preprocess")["BEYOND_LINK"]
    out, _ = edges(rendered)
    assert {source for source, target, port in out if (target, port) == ("*", 6390)} == {"preprocess", INFERENCE}


def test_redis_refuses_what_does_not_fit_and_keeps_what_it_took_on_a_volume() -> None:
    def conf(*values: str) -> dict[str, str]:
        text = release(*REDIS, *values).get("ConfigMap", "redis")["data"]["redis.conf"]
        return dict(line.split(None, 1) for line in text.splitlines())

    assert (conf()["maxmemory-policy"], conf()["appendonly"], conf()["appendfsync"]) == (
        "noeviction",
        "yes",
        "everysec",
    )
    # Half of the limit: buffers, and a file that is written anew, need the rest
    assert conf()["maxmemory"] == "1024mb"
    assert conf(*setting("redis.resources.limits.memory=512Mi"))["maxmemory"] == "256mb"
    assert conf(*setting("redis.appendfsync=always"))["appendfsync"] == "always"
    # YAML reads a bare `no` as false
    assert conf("--set-json", "redis.appendfsync=false")["appendfsync"] == "no"
    redis = release(*REDIS).get("StatefulSet", "redis")
    [claim] = redis["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"] == {"requests": {"storage": "8Gi"}}
    [container] = redis["spec"]["template"]["spec"]["containers"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
    assert mount["mountPath"] == conf()["dir"]
    ephemeral = release(*REDIS, *setting("redis.persistence.enabled=false")).get("StatefulSet", "redis")
    assert "volumeClaimTemplates" not in ephemeral["spec"]
    assert "data" in [volume["name"] for volume in ephemeral["spec"]["template"]["spec"]["volumes"]]


@pytest.mark.parametrize("value", ["redis.resources.limits.memory=1Gi", "redis.appendfsync=always"])
def test_another_configuration_of_redis_is_another_pod(value: str) -> None:
    before, after = (
        release(*REDIS, *values).get("StatefulSet", "redis")["spec"]["template"]["metadata"]["annotations"]
        for values in ((), setting(value))
    )
    assert before != after


REDIS_ELSEWHERE = (
    *setting("redis.mode=external", "redis.external.address=r:6380", "redis.external.tls=true"),
    *setting("redis.external.existingSecret=login", "redis.external.passwordKey=key"),
)
REDIS_SECURED = (*REDIS, *REDIS_ELSEWHERE)


def redis_environment(container: Mapping[str, Any]) -> dict[str, Any]:
    """What a container is told of Redis: a value, or the secret and its key."""
    return {
        variable["name"].removeprefix("BEYOND_REDIS_"): variable.get("value") or variable["valueFrom"]["secretKeyRef"]
        for variable in container.get("env", ())
        if variable["name"].startswith("BEYOND_REDIS_")
    }


def test_who_meets_a_redis_with_secrets_gets_them_and_nobody_else() -> None:
    whole = setting("redis.external.userKey=name", "redis.external.caSecret=ca", "redis.external.clientSecret=me")
    rendered = release(*REDIS_SECURED, *whole)
    met = {
        "TLS": "on",
        "USER": {"name": "login", "key": "name"},
        "PASSWORD": {"name": "login", "key": "key"},
        "CA_FILE": "/etc/redis-ca/ca.crt",
        "CERTIFICATE_FILE": "/etc/redis-client/tls.crt",
        "KEY_FILE": "/etc/redis-client/tls.key",
    }
    # Each knows its variables
    assert met.keys() <= {variable.removeprefix("redis_").upper() for variable in RedisSettings.__dataclass_fields__}
    clients = []
    for name, metadata, spec in rendered.pods():
        [container, *_] = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume.get("secret") for volume in spec["volumes"]}
        if not redis_environment(container):
            assert not {"redis-ca", "redis-client"} & volumes.keys(), name
            continue
        clients.append(metadata["labels"]["app.kubernetes.io/component"])
        assert redis_environment(container) == met
        assert (mounts["redis-ca"], mounts["redis-client"]) == ("/etc/redis-ca", "/etc/redis-client")
        assert volumes["redis-ca"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
        assert {volumes[name]["defaultMode"] for name in ("redis-ca", "redis-client")} == {0o440}
    assert sorted(clients) == [INFERENCE, "preprocess"]


def test_a_password_alone_is_the_default_users_and_a_redis_without_secrets_is_told_none() -> None:
    container = release(*REDIS_SECURED).container("Deployment", "preprocess")
    assert redis_environment(container) == {"TLS": "on", "PASSWORD": {"name": "login", "key": "key"}}
    # Not where links go elsewhere, nor where Redis is the release's own
    for other in (release(*REDIS_ELSEWHERE, *GRPC), release(*REDIS)):
        for _, _, spec in other.pods():
            assert not redis_environment(spec["containers"][0])


def test_keda_scales_on_the_length_of_the_models_stream() -> None:
    """Names: https://keda.sh/docs/2.18/scalers/redis-streams/"""
    keda = setting("inference.autoscaling.type=keda", "inference.autoscaling.maxReplicas=20")
    scaled = release(*REDIS, *keda).get("ScaledObject", INFERENCE)
    # A stream has no partitions that would bound it
    assert scaled["spec"]["maxReplicaCount"] == 20
    [trigger] = scaled["spec"]["triggers"]
    assert trigger == {
        "type": "redis-streams",
        "metadata": {
            "address": f"{PREFIX}-redis.{NAMESPACE}.svc.cluster.local:6379",
            "stream": "efficientnet-lite0",
            "streamLength": "16",
        },
    }
    _, into = edges(release(*REDIS, *keda))
    assert ("others", "redis", 6379) in into
    assert ("others", "redis", 6379) not in edges(release(*REDIS))[1]
    # With a password, and a user where there is one
    secured = release(*REDIS_SECURED, *keda, *setting("redis.external.userKey=name"))
    [trigger] = secured.get("ScaledObject", INFERENCE)["spec"]["triggers"]
    assert trigger["metadata"]["enableTLS"] == "true"
    assert trigger["authenticationRef"] == {"name": f"{PREFIX}-redis-scaler"}
    assert secured.get("TriggerAuthentication", "redis-scaler")["spec"]["secretTargetRef"] == [
        {"parameter": "username", "name": "login", "key": "name"},
        {"parameter": "password", "name": "login", "key": "key"},
    ]


def test_over_redis_nothing_is_allowed_but_its_edges() -> None:
    out, into = edges(release(*REDIS))
    through = {edge for edge in out | into if "redis" in edge}
    assert through == {("preprocess", "redis", 6379), (INFERENCE, "redis", 6379)}
    assert through <= out & into
    # It asks nobody
    assert not release(*REDIS).get("NetworkPolicy", "redis")["spec"]["egress"]


# --- what crosses ----------------------------------------------------------------------------------------------------


def test_a_door_is_told_in_which_form_a_models_images_cross_where_it_is_not_the_default() -> None:
    assert "BEYOND_CUT" not in release().environment("preprocess")
    assert "BEYOND_CUT" not in release(*setting(f"{MODEL}.cut=f32")).environment("preprocess")
    other = setting("models.deep.task=depth", "models.deep.link=grpc", "models.deep.model=midas", "models.deep.cut=f16")
    rendered = release(*setting(f"{MODEL}.cut=u8"), *other)
    # By its name in the models file
    assert rendered.environment("preprocess")["BEYOND_CUT"].split() == ["midas=f16", "efficientnet-lite0=u8"]


def test_inference_prepares_what_crosses_as_the_door_does_with_threads_of_its_own_limit() -> None:
    values = ("preprocess.decode=full", "preprocess.maxPixels=5000000", "inference.resources.limits.cpu=3")
    environment = release(*setting(*values)).environment(INFERENCE)
    assert environment["BEYOND_DECODE"] == "full"
    assert environment["BEYOND_MAX_PIXELS"] == "5000000"
    assert environment["BEYOND_PREPROCESS_INSTANCES"] == "3"
    # Doors may be told another form without a change here
    before, after = (release(*setting(f"{MODEL}.cut={cut}")).get("Deployment", INFERENCE) for cut in ("f32", "jpeg"))
    assert before == after


# --- CPUs and devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "threads", "decoders", "instances"),
    [("2", 1, "2", "2"), ("3500m", 1, "3", "3"), ("500m", 1, "1", "1"), ("8", 4, "8", "2"), ("1", 4, "1", "1")],
)
def test_threads_follow_the_limit(limit: str, threads: int, decoders: str, instances: str) -> None:
    rendered = release(
        "--set-string",
        f"preprocess.resources.limits.cpu={limit},inference.resources.limits.cpu={limit}",
        *setting(f"inference.threads={threads}"),
    )
    assert rendered.environment("preprocess")["BEYOND_PREPROCESS_INSTANCES"] == decoders
    engine = rendered.environment(INFERENCE)
    assert engine["BEYOND_INSTANCES"] == instances
    assert engine["BEYOND_THREADS"] == engine["OMP_NUM_THREADS"] == str(threads)


def test_without_a_limit_the_service_counts_cpus_itself() -> None:
    rendered = release("--set-json", "preprocess.resources.limits.cpu=null")
    assert rendered.environment("preprocess")["BEYOND_PREPROCESS_INSTANCES"] == "0"


def test_a_fused_door_asks_for_what_is_asked_for_and_has_a_limit_where_both_have() -> None:
    """An HPA on CPU would stand still without a request."""
    bare = setting("inference.resources.requests.cpu=null", "inference.resources.limits.memory=null")
    [door] = release(*FUSED, *bare).get("Deployment", "preprocess")["spec"]["template"]["spec"]["containers"]
    assert door["resources"]["requests"] == {"cpu": "1000m", "memory": "1024Mi"}
    assert door["resources"]["limits"] == {"cpu": "4000m"}


def test_a_gpu_pod() -> None:
    values = ("inference.gpu.count=2", "inference.gpu.resourceName=nvidia.com/mig-1g.10gb", "inference.device=cuda")
    rendered = release(
        *setting(*values, "inference.runtimeClassName=nvidia", "inference.nodeSelector.gpu=h100"),
        "--set-json",
        'inference.tolerations=[{"key":"nvidia.com/gpu","operator":"Exists"}]',
    )
    spec = pod(rendered, INFERENCE)
    [container] = spec["containers"]
    for kind in ("limits", "requests"):
        assert container["resources"][kind]["nvidia.com/mig-1g.10gb"] == 2
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    environment = rendered.environment(INFERENCE)
    assert environment["BEYOND_DEVICE"] == "cuda"
    assert environment["BEYOND_INSTANCES"] == "1"
    # A node's only GPU must be given back before the next pod can have it
    strategy = rendered.get("Deployment", INFERENCE)["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}
    # The door is a CPU pod all the same
    door = pod(rendered, "preprocess")
    assert "nvidia.com" not in json.dumps(door)
    assert "runtimeClassName" not in door


def test_a_fused_gpu_pod_goes_where_the_model_may() -> None:
    values = ("inference.gpu.count=1", "inference.device=cuda", "inference.runtimeClassName=nvidia")
    spec = pod(release(*FUSED, *setting(*values)), "preprocess")
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["runtimeClassName"] == "nvidia"


def test_without_a_gpu_nothing_asks_for_one() -> None:
    assert "nvidia" not in json.dumps(release().objects)


def test_what_a_model_says_stands_for_what_all_say() -> None:
    rendered = release(*setting("inference.maxBatch=4", f"{MODEL}.maxBatch=16", f"{MODEL}.resources.limits.cpu=3"))
    assert rendered.environment(INFERENCE)["BEYOND_MAX_BATCH"] == "16"
    assert rendered.container("Deployment", INFERENCE)["resources"]["limits"] == {"cpu": 3, "memory": "2Gi"}


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_from_a_volume() -> None:
    values = ("modelStore.type=pvc", "modelStore.pvc.claimName=models", "modelStore.pvc.subPath=v1")
    rendered = release(*setting(*values, f"modelStore.sha256.a={'0' * 64}"))
    for name in ("preprocess", INFERENCE):
        spec = pod(rendered, name)
        assert {"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}} in spec["volumes"]
        mount = {"name": "models", "mountPath": "/models", "readOnly": True, "subPath": "v1"}
        assert mount in spec["containers"][0]["volumeMounts"]
        assert mount in spec["initContainers"][0]["volumeMounts"]


def test_models_from_an_image_are_copied_and_checked_before_a_service_starts() -> None:
    checksum = "0123456789abcdef" * 4
    values = ("modelStore.type=image", "modelStore.image.repository=models", "modelStore.image.tag=v3")
    rendered = release(*setting(*values, f"modelStore.sha256.a\\.onnx={checksum}"))
    for name in ("preprocess", INFERENCE):
        spec = pod(rendered, name)
        [copy, check] = spec["initContainers"]
        assert copy["image"] == "models:v3"
        assert copy["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
        assert check["command"][0] == "sha256sum"
        assert check["workingDir"] == "/models"
        assert {"name": "models", "mountPath": "/models", "readOnly": True} in spec["containers"][0]["volumeMounts"]
    # In the form that sha256sum reads: two blanks
    assert rendered.get("ConfigMap", "models")["data"]["SHA256SUMS"] == f"{checksum}  a.onnx\n"


def test_a_models_file_of_ones_own() -> None:
    rendered = release("--set", "modelStore.inline=[mine]\nlaw = [1\\, 2]")
    for name in ("preprocess", INFERENCE):
        assert rendered.environment(name)["BEYOND_MODELS_FILE"] == "/etc/beyond-inference/models.toml"
    assert rendered.get("ConfigMap", "models")["data"]["models.toml"] == "[mine]\nlaw = [1, 2]\n"
    # Other models, other pods
    changed = rendered.get("Deployment", INFERENCE)["spec"]["template"]["metadata"]["annotations"]
    assert changed != release().get("Deployment", INFERENCE)["spec"]["template"]["metadata"]["annotations"]


# --- scaling, disruption ---------------------------------------------------------------------------------------------


def test_by_default_nothing_scales_and_replicas_are_those_of_the_values() -> None:
    rendered = release(*setting("preprocess.replicas=3", "inference.replicas=2"))
    assert not rendered.all("HorizontalPodAutoscaler")
    assert rendered.get("Deployment", "preprocess")["spec"]["replicas"] == 3
    assert rendered.get("Deployment", INFERENCE)["spec"]["replicas"] == 2


@pytest.mark.parametrize(("values", "name"), [("preprocess", "preprocess"), ("inference", INFERENCE)])
def test_an_hpa_has_the_replicas_to_itself(values: str, name: str) -> None:
    rendered = release(*setting(f"{values}.autoscaling.type=hpa", f"{values}.autoscaling.maxReplicas=6"))
    hpa = rendered.get("HorizontalPodAutoscaler", name)
    assert hpa["spec"]["scaleTargetRef"]["name"] == f"{PREFIX}-{name}"
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (1, 6)
    assert "replicas" not in rendered.get("Deployment", name)["spec"]


def test_keda_scales_on_the_lag_of_the_models_topic_up_to_its_partitions() -> None:
    rendered = release(*setting("inference.autoscaling.type=keda", "inference.autoscaling.maxReplicas=8"))
    scaled = rendered.get("ScaledObject", INFERENCE)
    assert scaled["spec"]["maxReplicaCount"] == 8
    [trigger] = scaled["spec"]["triggers"]
    metadata = trigger["metadata"]
    assert metadata["topic"] == metadata["consumerGroup"] == "efficientnet-lite0"
    assert metadata["bootstrapServers"] == f"{PREFIX}-kafka.{NAMESPACE}.svc.cluster.local:9092"
    assert all(isinstance(value, str) for value in metadata.values())
    assert not rendered.all("HorizontalPodAutoscaler")
    assert "replicas" not in rendered.get("Deployment", INFERENCE)["spec"]


def test_a_disruption_budget_where_there_is_more_than_one_pod() -> None:
    assert not release().all("PodDisruptionBudget")
    assert set(release(*setting("preprocess.replicas=2")).all("PodDisruptionBudget")) == {"preprocess"}
    scaled = release(*setting("inference.autoscaling.type=hpa", "inference.autoscaling.minReplicas=2"))
    assert set(scaled.all("PodDisruptionBudget")) == {INFERENCE}
    assert not release(*setting("preprocess.replicas=2", "preprocess.pdb.enabled=false")).all("PodDisruptionBudget")


def test_pods_spread_over_hosts_unless_told_otherwise() -> None:
    [constraint] = pod(release(), "preprocess")["topologySpreadConstraints"]
    selector = release().get("Deployment", "preprocess")["spec"]["selector"]
    assert constraint["labelSelector"] == selector
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


# --- spans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "spans"),
    [
        ((), f"otlp://{PREFIX}-collector.{NAMESPACE}.svc.cluster.local:4317"),
        (("collector.mode=off",), f"otlp://{PREFIX}-jaeger.{NAMESPACE}.svc.cluster.local:4317"),
        (("collector.mode=external", "collector.external.endpoint=c:4317"), "otlp://c:4317"),
        (("collector.mode=off", "jaeger.mode=external", "jaeger.external.endpoint=j:4317"), "otlp://j:4317"),
        (("collector.mode=off", "jaeger.mode=off"), None),
    ],
)
def test_where_spans_go(values: tuple[str, ...], spans: str | None) -> None:
    rendered = release(*setting(*values))
    for name in ("preprocess", INFERENCE):
        assert rendered.environment(name).get("BEYOND_SPANS") == spans


# --- who may talk to whom --------------------------------------------------------------------------------------------

Edge = tuple[str, str, int]


def edges(rendered: Release) -> tuple[set[Edge], set[Edge]]:
    """What policies let out, and what they let in: (from, to, port); `*` is everybody, `others` somebody else."""

    def component(peers: list[Any] | None) -> str:
        if not peers:
            return "*"
        [peer] = peers
        labels = peer.get("podSelector", {}).get("matchLabels", {})
        return str(labels.get("app.kubernetes.io/component", "others"))

    out: set[Edge] = set()
    into: set[Edge] = set()
    for name, policy in rendered.all("NetworkPolicy").items():
        if name in ("default-deny", "dns"):
            continue
        for rule in policy["spec"].get("egress") or []:
            out.add((name, component(rule.get("to")), rule["ports"][0]["port"]))
        for rule in policy["spec"].get("ingress") or []:
            into.add((component(rule.get("from")), name, rule["ports"][0]["port"]))
    return out, into


def test_nothing_is_allowed_but_the_edges_of_the_suite() -> None:
    out, into = edges(release())
    between = {
        ("preprocess", "kafka", 9092),
        (INFERENCE, "kafka", 9092),
        ("topics", "kafka", 9092),
        ("preprocess", "collector", 4317),
        (INFERENCE, "collector", 4317),
        ("collector", "jaeger", 4317),
        ("load", "load", 7090),
        ("load", "preprocess", 8001),
        ("load", "preprocess", 9464),
        ("load", INFERENCE, 9464),
        ("load", "collector", 4317),
        ("test", "preprocess", 8001),
        ("test", "collector", 4317),
        ("test", "jaeger", 16686),
    }
    assert out == between
    # Each is let in, too; from elsewhere everybody may ask the door, and whoever is in the cluster may scrape
    scrapes = {("others", name, port) for name, port in (("preprocess", 9464), (INFERENCE, 9464), ("collector", 8889))}
    assert into == between | {("*", "preprocess", 8001)} | scrapes


def test_over_grpc_the_door_talks_to_inference_and_nobody_to_a_broker() -> None:
    out, into = edges(release(*GRPC))
    assert ("preprocess", INFERENCE, 8002) in out & into
    assert not [edge for edge in out | into if "kafka" in edge or 9092 in edge]


def test_fused_nobody_talks_to_anybody_but_of_spans() -> None:
    out, _ = edges(release(*FUSED))
    assert {edge for edge in out if edge[0] == "preprocess"} == {("preprocess", "collector", 4317)}


def test_further_ports_of_what_is_elsewhere_are_those_that_the_values_name() -> None:
    """Brokers advertise others, and a policy sees a pod's port, not its Service's."""
    brokers = ("kafka.mode=external", "kafka.external.bootstrap={a:9092}", "kafka.external.ports={9094,9092,19092}")
    there = ("collector.mode=external", "collector.external.endpoint=c:4317", "collector.external.ports={14317}")
    out, _ = edges(release(*setting(*brokers, *there)))
    assert {edge for edge in out if edge[0] == INFERENCE} == {
        (INFERENCE, "*", port) for port in (9092, 9094, 19092, 4317, 14317)
    }
    out, _ = edges(
        release(*setting("jaeger.mode=external", "jaeger.external.endpoint=j:4317", "jaeger.external.ports={5317}"))
    )
    assert {edge for edge in out if edge[0] == "collector"} == {("collector", "*", 4317), ("collector", "*", 5317)}


def test_a_configuration_of_ones_own_reaches_what_it_names_and_has_its_secrets_by_the_environment() -> None:
    variable = '[{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]'
    for name, port in (("collector", 443), ("jaeger", 9200)):
        values = ("--set-json", f"{name}.extraEnv={variable}", *setting(f"{name}.egressPorts={{{port}}}"))
        rendered = release(*values, "--set-string", f"{name}.config=a: ${{env:TOKEN}}")
        assert (name, "*", port) in edges(rendered)[0]
        assert (name, "*", port) not in edges(release())[0]
        assert json.loads(variable)[0] in rendered.container("Deployment", name)["env"]
        assert "${env:TOKEN}" in rendered.get("ConfigMap", name)["data"]["config.yaml"]


def test_what_is_elsewhere_is_reached_by_its_port() -> None:
    values = ("kafka.mode=external", "kafka.external.bootstrap={a:9092,b:9093}", "collector.mode=external")
    out, _ = edges(release(*setting(*values, "collector.external.endpoint=c:14317")))
    assert {edge for edge in out if edge[0] == INFERENCE} == {(INFERENCE, "*", port) for port in (9092, 9093, 14317)}


def test_keda_may_ask_the_broker_where_it_scales_and_the_door_is_for_whom_one_names() -> None:
    assert ("others", "kafka", 9092) not in edges(release())[1]
    values = ("inference.autoscaling.type=keda", "networkPolicies.doorFrom[0].podSelector.matchLabels.a=b")
    _, into = edges(release(*setting(*values)))
    assert ("others", "kafka", 9092) in into
    assert ("others", "preprocess", 8001) in into
    assert ("*", "preprocess", 8001) not in into


def test_all_pods_are_denied_first_and_may_ask_for_names() -> None:
    rendered = release()
    deny, dns = (rendered.get("NetworkPolicy", name)["spec"] for name in ("default-deny", "dns"))
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    [names] = dns["egress"]
    assert names["ports"] == [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    [peer] = names["to"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kube-system"}
    assert peer["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    local = '[{"ipBlock": {"cidr": "169.254.20.10/32"}}]'
    elsewhere = release("--set-json", f"networkPolicies.dnsTo={local}", *setting("networkPolicies.dnsPort=5353"))
    [names] = elsewhere.get("NetworkPolicy", "dns")["spec"]["egress"]
    assert names["to"] == json.loads(local)
    assert {port["port"] for port in names["ports"]} == {5353}
    [names] = release("--set-json", "networkPolicies.dnsTo=[]").get("NetworkPolicy", "dns")["spec"]["egress"]
    assert "to" not in names
    for _, metadata, _ in rendered.pods():
        for policy in (deny, dns):
            assert policy["podSelector"]["matchLabels"].items() <= metadata["labels"].items()
    assert not release(*setting("networkPolicies.enabled=false")).all("NetworkPolicy")


def test_every_component_with_an_edge_has_pods_and_every_pod_a_policy() -> None:
    rendered = release(*VARIANTS["everything"])
    components = {metadata["labels"]["app.kubernetes.io/component"] for _, metadata, _ in rendered.pods()}
    assert components == set(rendered.all("NetworkPolicy")) - {"default-deny", "dns"}


def test_services_find_their_pods() -> None:
    rendered = release(*GRPC)
    pods = list(rendered.pods())
    for name, service in rendered.all("Service").items():
        found = [
            {port["name"] for container in spec["containers"] for port in container.get("ports", [])}
            for _, metadata, spec in pods
            if service["spec"]["selector"].items() <= metadata["labels"].items()
        ]
        assert len(found) == 1, name
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= found[0], name


def test_metrics_are_for_the_cluster_and_found_there() -> None:
    rendered = release(*setting("metrics.serviceMonitor.enabled=true", "preprocess.service.type=LoadBalancer"))
    assert [port["name"] for port in rendered.get("Service", "preprocess")["spec"]["ports"]] == ["grpc"]
    for name, monitor in rendered.all("ServiceMonitor").items():
        wanted = monitor["spec"]["selector"]["matchLabels"]
        found = [
            service["spec"]
            for service in rendered.all("Service").values()
            if wanted.items() <= service["metadata"]["labels"].items()
        ]
        assert len(found) == 1, name
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {
            port["name"] for port in found[0]["ports"]
        }, name
    assert set(rendered.all("ServiceMonitor")) == {"preprocess", INFERENCE, "collector"}
    off = release(*setting("metrics.enabled=false"))
    for name in ("preprocess-headless", INFERENCE):
        assert [port["name"] for port in off.get("Service", name)["spec"]["ports"]] == ["grpc"]


# --- load and tests --------------------------------------------------------------------------------------------------


def test_helms_test_asks_over_every_link_and_knows_what_to_look_for() -> None:
    pods = release().all("Pod")
    assert list(pods) == ["test-efficientnet-lite0"]
    # Helm would ask any other hook of this kind for a log, too
    hooks = [found for found in release().objects if "helm.sh/hook" in found["metadata"].get("annotations", {})]
    assert hooks == list(pods.values())
    command = pods["test-efficientnet-lite0"]["spec"]["containers"][0]["command"]
    assert f"--door=grpc://{PREFIX}-preprocess-headless.{NAMESPACE}.svc.cluster.local:8001" in command
    assert "--hop=preprocess>inference" in command
    assert "--word=espresso" in command
    assert any(word.startswith("--jaeger=http://") for word in command)
    # Of another model nobody knows what it says, and without a hop there is none to look for
    other = release(*FUSED, *setting(f"{MODEL}.model=mobilenet-v3-large", "jaeger.mode=off")).all("Pod")
    command = other["test-efficientnet-lite0"]["spec"]["containers"][0]["command"]
    assert not [word for word in command if word.startswith(("--hop", "--word", "--jaeger"))]


def test_a_load_job_is_of_its_plan_and_is_not_repeated() -> None:
    def job(plan: str, run: str = "1") -> Object:
        jobs = release(*setting("load.enabled=true", f"load.plan={plan}", f"load.run={run}", "kafka.topics.job=false"))
        [found] = jobs.all("Job").values()
        return found

    assert job("a")["spec"]["backoffLimit"] == 0
    names = {job(*words)["metadata"]["name"] for words in (("a", "1"), ("b", "1"), ("a", "2"))}
    assert len(names) == 3
    assert not release().all("Job").keys() & {"load"}


@pytest.mark.parametrize(
    "value",
    [
        "imagePullPolicy=Always",
        "commonLabels.team=vision",
        "serviceAccount.create=false",
        "preprocess.image.tag=next",
        "loadgen.resources.limits.cpu=3",
        "preprocess.replicas=2",
        "load.pods=2",
        "load.sampleRatio=0.5",
    ],
)
def test_a_job_whose_pods_would_be_others_is_another_job(value: str) -> None:
    """Kubernetes refuses another template for a Job that is there, and the upgrade with it."""
    load = ("load.enabled=true", "load.plan=a")
    before, after = release(*setting(*load)).all("Job"), release(*setting(*load, value)).all("Job")
    assert {name.partition("-")[0] for name in before} == {"load", "topics"}
    same = before.keys() & after.keys()
    assert len(same) < len(before)
    for name in same:
        assert before[name]["spec"]["template"] == after[name]["spec"]["template"]


def test_a_release_may_be_called_by_a_number() -> None:
    for found in render("--set-string", "nameOverride=42,fullnameOverride=vision"):
        assert all(isinstance(label, str) for label in found["metadata"]["labels"].values())


def test_a_load_of_several_pods_is_one_indexed_job_whose_pods_meet_at_the_first() -> None:
    rendered = release(*setting("load.enabled=true", "load.plan=a", "load.pods=3", "kafka.topics.job=false"))
    [job] = rendered.all("Job").values()
    name, spec, pod = job["metadata"]["name"], job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    # One that failed is not repeated, and does not stop those that still write their results
    assert spec["backoffLimitPerIndex"] == 0
    assert "backoffLimit" not in spec
    # Its pods have names: those of a Service that takes them before they are ready, and only this Job's
    service = rendered.get("Service", name.removeprefix(f"{PREFIX}-"))
    assert pod["subdomain"] == service["metadata"]["name"] == name
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    labels = {**spec["template"]["metadata"]["labels"], "job-name": name}  # which Kubernetes gives them
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["selector"]["job-name"] == name
    [container] = pod["containers"]
    [port] = [port["port"] for port in service["spec"]["ports"]]
    assert f"--meet={name}-0.{name}.{NAMESPACE}.svc.cluster.local:{port}" in container["command"]
    assert [found["containerPort"] for found in container["ports"]] == [port]
    assert container["env"] == [{"name": "LOAD_PARTS", "value": "3"}]
    assert ("load", "load", port) in edges(rendered)[0]


LOAD = setting("load.enabled=true", "load.plan=a", "kafka.topics.job=false")
FRAMES = setting("preprocess.frames.enabled=true", "load.entrance=frames")


def test_a_load_may_be_published_as_cameras_do() -> None:
    [job] = release(*GRPC, *LOAD, *FRAMES).all("Job").values()
    [container] = job["spec"]["template"]["spec"]["containers"]
    [target] = [word for word in container["command"] if word.startswith("--target=")]
    door = f"{PREFIX}-preprocess-headless.{NAMESPACE}.svc.cluster.local:8001"
    kafka = f"{PREFIX}-kafka.{NAMESPACE}.svc.cluster.local:9092"
    assert target == f"--target=door=kafka://{kafka}/images?door={door}"
    check_url(target.removeprefix("--target=door="))  # as the load generator does
    assert "env" not in container
    # By the client that the doors have
    [job] = release(*GRPC, *LOAD, *FRAMES, *setting("preprocess.frames.client=kafka-python")).all("Job").values()
    assert any("=kafka+python://" in word for word in job["spec"]["template"]["spec"]["containers"][0]["command"])


def test_a_load_of_frames_has_the_brokers_secrets_and_no_other_has() -> None:
    for entrance, has in (("frames", True), ("grpc", False)):
        rendered = release(*SECURED, *LOAD, *setting("preprocess.frames.enabled=true", f"load.entrance={entrance}"))
        [job] = rendered.all("Job").values()
        pod = job["spec"]["template"]["spec"]
        [container] = pod["containers"]
        told = kafka_environment(container)
        assert told == (kafka_environment(rendered.container("Deployment", "preprocess")) if has else {})
        assert any(mount["mountPath"] == "/etc/kafka-ca" for mount in container["volumeMounts"]) is has
        assert any(volume["name"] == "kafka-ca" for volume in pod["volumes"]) is has


def test_a_load_of_one_pod_meets_nobody() -> None:
    rendered = release(*setting("load.enabled=true", "load.plan=a", "kafka.topics.job=false"))
    [job] = rendered.all("Job").values()
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert not [word for word in container["command"] if word.startswith("--meet")]
    assert not {"env", "ports"} & container.keys()
    assert "completionMode" not in job["spec"]
    assert not [name for name in rendered.all("Service") if name.startswith("load-")]


def test_several_pods_of_a_load_need_kubernetes_1_29() -> None:
    values = setting("load.enabled=true", "load.plan=a", "load.pods=2")
    with pytest.raises(Refused, match=r"need Kubernetes 1\.29, and this is v1\.28\.0; set load\.pods: 1"):
        render(*values, kubernetes="1.28.0")
    assert render(*values, kubernetes="1.29.0")


def test_a_load_job_asks_for_lost_spans_where_there_is_one_pod_to_ask() -> None:
    def asked(*values: str) -> list[str]:
        rendered = release(*setting("load.enabled=true", "load.plan=a", "kafka.topics.job=false", *values))
        [job] = rendered.all("Job").values()
        command = job["spec"]["template"]["spec"]["containers"][0]["command"]
        return [re.findall(r"beyond-inference-([\w-]+)\.", word)[0] for word in command if "--metrics" in word]

    assert asked() == ["preprocess-headless", INFERENCE]
    assert asked("preprocess.replicas=2") == [INFERENCE]
    assert asked("metrics.enabled=false") == []


def test_texts_of_ones_own_may_begin_with_blanks(tmp_path: Path) -> None:
    text = '  # two blanks in front\nname = "x"\n\n    deeper = 1\n'
    file = tmp_path / "text"
    file.write_text(text, encoding="utf-8")
    places = {
        "load.plan": ("load-", "plan.toml"),
        "modelStore.inline": ("models", "models.toml"),
        "collector.config": ("collector", "config.yaml"),
        "jaeger.config": ("jaeger", "config.yaml"),
    }
    for value, (name, key) in places.items():
        plan = () if value == "load.plan" else setting("load.plan=x")
        rendered = release("--set-file", f"{value}={file}", *plan, *setting("load.enabled=true"))
        [found] = [o["data"] for n, o in rendered.all("ConfigMap").items() if n.startswith(name)]
        assert found[key] == text, value


def test_further_objects_are_templates() -> None:
    rendered = release(
        "--set-json", 'extraObjects=["apiVersion: v1\\nkind: Secret\\nmetadata: {name: \\"{{ .Release.Name }}-x\\"}"]'
    )
    [secret] = rendered.all("Secret").values()
    assert secret["metadata"]["name"] == "suite-x"
