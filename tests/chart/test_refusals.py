"""Wrong values are refused before anything is installed, with a message that says what is wrong and what is right."""

from __future__ import annotations

import pytest

from tests.chart.conftest import Refused, render, setting

MODEL = "models.efficientnet-lite0"
REDIS = ("redis.mode=external", "redis.external.address=r:6380")
BROKERS = ("kafka.mode=external", "kafka.external.bootstrap={a:9093}")

WRONG = {
    # --- what the schema refuses: it names the place
    "an unknown key": (["preprocess.replcas=2"], ["/preprocess", "replcas"]),
    "an unknown key of a model": ([f"{MODEL}.replcas=2"], [f"/{MODEL.replace('.', '/')}", "replcas"]),
    "an unknown top": (["preproces.replicas=2"], ["preproces"]),
    "an unknown link": (
        [f"{MODEL}.link=carrier-pigeon"],
        ["link", "'fused', 'grpc', 'kafka', 'kafka-python', 'redis'"],
    ),
    "a model without a link": (["models.other.task=classification"], ["/models/other", "link"]),
    "a model's name that no object can have": (
        ["models.Other.task=classification", "models.Other.link=grpc"],
        ["propertyName 'Other'", "[a-z0-9]"],
    ),
    "an unknown mode": (["kafka.mode=embedded"], ["/kafka/mode", "'internal', 'external'"]),
    "no replicas": (["preprocess.replicas=0"], ["/preprocess/replicas", "minimum"]),
    "hpa and keda": (["inference.autoscaling.type=both"], ["/inference/autoscaling/type", "'none', 'hpa', 'keda'"]),
    "keda for a door": (["preprocess.autoscaling.type=keda"], ["/preprocess/autoscaling/type", "'none', 'hpa'"]),
    "too few partitions": (["kafka.partitions=2"], ["/kafka/partitions", "minimum"]),
    "a digest that is none": (["jaeger.image.digest=2.13.0"], ["/jaeger/image/digest", "sha256"]),
    "a checksum that is none": (["modelStore.sha256.a=1f"], ["/modelStore/sha256/a"]),
    "a quantity that is none": (["preprocess.resources.limits.cpu=two"], ["/preprocess/resources/limits/cpu"]),
    "a resource's kind that is none": (["kafka.resources.limit.cpu=2"], ["/kafka/resources", "limit"]),
    "a share above one": (["tracing.sampleRatio=1.5"], ["/tracing/sampleRatio"]),
    "a device that is none": (["inference.device=gpu"], ["/inference/device", "cuda"]),
    "a GPU without a vendor": (["inference.gpu.resourceName=gpu"], ["/inference/gpu/resourceName"]),
    "a log level that is none": (["logLevel=LOUD"], ["/logLevel", "'DEBUG', 'INFO', 'WARNING', 'ERROR'"]),
    "a broker without a port": (
        ["kafka.mode=external", "kafka.external.bootstrap={broker}"],
        ["/kafka/external/bootstrap/0"],
    ),
    "a command that is nothing": (["collector.command=null"], ["/collector", "'command'"]),
    # --- what contradicts itself: the message has the remedy
    "no model": ([f"{MODEL}.enabled=false"], ["no model is enabled", "set models.<name>.enabled: true"]),
    "two models of one task": (
        ["models.other.task=classification", "models.other.link=grpc"],
        ["'efficientnet-lite0' and 'other'", "enabled: false"],
    ),
    "a link through a broker that is off": (
        ["kafka.mode=off"],
        [f"{MODEL} goes through Kafka", "set kafka.mode to internal or external"],
    ),
    "consumers of a broker that is off": (
        ["kafka.mode=off", f"{MODEL}.link=grpc", f"{MODEL}.serve={{kafka}}"],
        [f"{MODEL} goes through Kafka"],
    ),
    "frames of a broker that is off": (
        ["kafka.mode=off", f"{MODEL}.link=grpc", "preprocess.frames.enabled=true"],
        ["preprocess.frames are taken from Kafka", "preprocess.frames.enabled: false"],
    ),
    "results among the frames": (
        ["preprocess.frames.enabled=true", "preprocess.frames.results=images.dead"],
        ["'images.dead', a topic of the frames themselves"],
    ),
    "more doors than partitions of frames": (
        ["preprocess.frames.enabled=true", "preprocess.replicas=9"],
        ["9 pods of preprocess", "raise kafka.partitions to 9"],
    ),
    "more doors than partitions, some day": (
        ["preprocess.frames.enabled=true", "preprocess.autoscaling.type=hpa", "preprocess.autoscaling.maxReplicas=20"],
        ["20 pods of preprocess"],
    ),
    "a GPU for a door that prepares on the CPU": (
        ["preprocess.gpu.count=1"],
        ["preprocess gets 1 GPU, and prepares on the CPU", "preprocess.preprocessor: gpu"],
    ),
    "a door on a GPU that it does not get": (
        ["preprocess.preprocessor=gpu"],
        ["preprocess.preprocessor is gpu, and its pods get no GPU", "preprocess.gpu.count: 1"],
    ),
    "a door with DALI on a GPU that it does not get": (
        ["preprocess.preprocessor=dali"],
        ["preprocess.preprocessor is dali, and its pods get no GPU", "preprocess.gpu.count: 1"],
    ),
    "a door with DALI in an image without": (
        [
            "preprocess.preprocessor=dali",
            "preprocess.gpu.count=1",
            f"{MODEL}.link=fused",
            "inference.image.variant=torch",
        ],
        ["the image of its fused model has no DALI", "inference.image.variant: dali"],
    ),
    "a door on a GPU without torch": (
        ["preprocess.preprocessor=gpu", "preprocess.gpu.count=1", f"{MODEL}.link=fused"],
        ["the image of its fused model has no torch", "inference.image.variant: torch"],
    ),
    "a load of frames that nobody takes": (
        ["load.entrance=frames"],
        ["load.entrance is frames, and doors take none", "preprocess.frames.enabled: true"],
    ),
    "frames for nobody": (
        ["preprocess.frames.enabled=true", "preprocess.frames.task=depth"],
        ["preprocess.frames.task is depth", "there is classification"],
    ),
    "frames without room": (
        ["preprocess.frames.enabled=true"],
        ["the broker's topics may keep 13056 MiB", "kafka.persistence.size is 8Gi; raise it"],
    ),
    "a topic's name that none is": (
        ["preprocess.frames.images=all images"],
        ["/preprocess/frames/images"],
    ),
    "more pods than partitions": (
        ["inference.replicas=9"],
        ["may have 9 pods, and kafka.partitions is 8", "raise kafka.partitions to 9"],
    ),
    "more pods than partitions, scaled": (
        ["inference.autoscaling.type=keda", f"{MODEL}.autoscaling.maxReplicas=12"],
        ["may have 12 pods", "raise kafka.partitions to 12"],
    ),
    "lag without a broker": (
        [f"{MODEL}.link=grpc", "inference.autoscaling.type=keda"],
        ["scales by the lag of a topic or stream", "link: kafka or redis, or autoscaling.type: hpa"],
    ),
    "scaling of a model in the door's process": (
        [f"{MODEL}.link=fused", "inference.autoscaling.type=hpa"],
        ["preprocess.autoscaling"],
    ),
    "fewest above most": (
        ["preprocess.autoscaling.type=hpa", "preprocess.autoscaling.minReplicas=9"],
        ["minReplicas is 9, maxReplicas 4"],
    ),
    "a share of no CPU request": (
        ["preprocess.autoscaling.type=hpa", "preprocess.resources.requests.cpu=null"],
        ["set preprocess.resources.requests.cpu"],
    ),
    "CUDA without a GPU": (["inference.device=cuda"], ["its pods get no GPU", "gpu.count: 1"]),
    "a GPU for nothing": (["inference.gpu.count=1"], ["gets 1 GPU, and runs on the CPU", "device: cuda"]),
    "torch where it is not": (["inference.backend=torch"], ["image.variant: torch"]),
    "TensorRT where it is not": (
        [
            "inference.backend=tensorrt",
            "inference.image.variant=torch",
            "inference.device=cuda",
            "inference.gpu.count=1",
        ],
        ["image.variant: tensorrt"],
    ),
    "TensorRT on a CPU": (
        ["inference.backend=tensorrt", "inference.image.variant=tensorrt"],
        ["NVIDIA's GPUs only", "device: cuda and gpu.count: 1"],
    ),
    "a precision that is none": (["inference.precision=fp16"], ["/inference/precision", "float16"]),
    "a door without threads for refusals": (
        ["preprocess.admissionLimit=200"],
        ["doorThreads is 160, and admissionLimit 200", "set doorThreads to 232"],
    ),
    "a drain shorter than a request": (
        ["preprocess.drainS=20"],
        ["preprocess.drainS is 20, and a request may take preprocess.timeoutS, 30 s", "set drainS: 0"],
    ),
    "a drain of a model that is shorter than a request": (
        ["preprocess.timeoutS=60", f"{MODEL}.drainS=59.5"],
        [f"{MODEL}.drainS is 59.5", "preprocess.timeoutS, 60 s"],
    ),
    "a port that is none": (["kafka.external.ports={70000}"], ["/kafka/external/ports/0"]),
    "brokers elsewhere, nowhere": (["kafka.mode=external"], ["kafka.external.bootstrap: [host:9092]"]),
    "a broker's protocol that is none": (["kafka.external.security=TLS"], ["/kafka/external/security", "'SASL_SSL'"]),
    "a mechanism that is none": (["kafka.external.mechanism=GSSAPI"], ["/kafka/external/mechanism", "'PLAIN'"]),
    "SASL without a secret": (
        [*BROKERS, "kafka.external.security=SASL_SSL"],
        ["is SASL_SSL", "kafka.external.existingSecret"],
    ),
    "a secret that would not be used": (
        [*BROKERS, "kafka.external.security=SSL", "kafka.external.existingSecret=user"],
        ["kafka.external.security is SSL", "set it to SASL_SSL"],
    ),
    "an authority that would not be asked": (
        [*BROKERS, "kafka.external.caSecret=ca"],
        ["kafka.external.security is PLAINTEXT", "set it to SSL or SASL_SSL"],
    ),
    "a collector elsewhere, nowhere": (["collector.mode=external"], ["collector.external.endpoint: host:4317"]),
    "a Jaeger elsewhere, nowhere": (["jaeger.mode=external"], ["jaeger.external.endpoint: host:4317"]),
    "tail sampling in two places": (
        ["collector.tailSampling.enabled=true", "collector.replicas=2"],
        ["set collector.replicas: 1"],
    ),
    # --- Redis
    "a link through a Redis that is off": (
        [f"{MODEL}.link=redis", "redis.mode=off"],
        [f"{MODEL} goes through Redis, and redis.mode is off", "set redis.mode to internal or external"],
    ),
    "listeners of a Redis that is off": (
        ["redis.mode=off", f"{MODEL}.serve={{redis}}"],
        [f"{MODEL} goes through Redis"],
    ),
    "a Redis elsewhere, nowhere": (["redis.mode=external"], ["redis.external.address: host:6379"]),
    "a Redis's address without a port": (["redis.external.address=r"], ["/redis/external/address"]),
    "a Redis's address with a password in it": (["redis.external.address=me:pw@r:1"], ["/redis/external/address"]),
    "an unknown key of Redis": (["redis.maxmemory=1gb"], ["/redis", "maxmemory"]),
    "an unknown mode of Redis": (["redis.mode=cluster"], ["/redis/mode", "'internal', 'external'"]),
    "a file that goes to the disk at an unknown time": (["redis.appendfsync=sometimes"], ["/redis/appendfsync"]),
    "a session that is too short": (["redis.sessionMs=100"], ["/redis/sessionMs", "minimum"]),
    "an authority that Redis would not be asked for": (
        [*REDIS, "redis.external.caSecret=ca"],
        ["redis.external.tls is false; set it to true"],
    ),
    "a user of Redis in no secret": (
        [*REDIS, "redis.external.userKey=name"],
        ["redis.external.userKey is name", "redis.external.existingSecret"],
    ),
    "lag behind an authority that KEDA is not given": (
        [
            *REDIS,
            "redis.external.tls=true",
            "redis.external.caSecret=ca",
            "inference.autoscaling.type=keda",
            f"{MODEL}.link=redis",
        ],
        ["KEDA is not given redis.external.caSecret", f"set {MODEL}.autoscaling.type: hpa"],
    ),
    "a Redis without a memory limit": (
        [f"{MODEL}.link=redis", "redis.resources.limits.memory=null"],
        ["leaves Redis 0 MiB to fill", "set it to 128Mi or more"],
    ),
    "a volume that Redis's file does not fit": (
        [f"{MODEL}.link=redis", "redis.persistence.size=2Gi"],
        ["may take 3328 MiB", "redis.persistence.size is 2Gi; raise it, or lower the limit"],
    ),
    # --- what crosses
    "a form that is none": ([f"{MODEL}.cut=u16"], ["cut", "'jpeg', 'u8', 'f16', 'f32'"]),
    "a form where nothing crosses": (
        [f"{MODEL}.link=fused", f"{MODEL}.cut=u8"],
        [f"{MODEL}.cut is u8, and its link is fused", "give the model another link"],
    ),
    "whole images where the door cuts faces out": (
        ["models.mtcnn.task=faces", "models.mtcnn.link=grpc", "models.mtcnn.cut=jpeg"],
        ["models.mtcnn.cut is jpeg", "set cut to u8, f16 or f32"],
    ),
    "whole images of which parts are asked about": (
        [
            "models.mtcnn.task=faces",
            "models.mtcnn.link=grpc",
            "models.id.task=identification",
            "models.id.link=grpc",
            "models.id.cut=jpeg",
        ],
        ["models.id.cut is jpeg, and models.mtcnn (task faces) asks it about parts", "u8, f16 or f32"],
    ),
    "models on no volume": (["modelStore.type=pvc"], ["modelStore.pvc.claimName"]),
    "models in no image": (["modelStore.type=image"], ["modelStore.image.repository"]),
    "a load without a plan": (["load.enabled=true"], ["--set-file load.plan="]),
    "a load of no pods": (["load.pods=0"], ["/load/pods", "minimum"]),
    "pods of a load without room for their number": (
        [
            "load.enabled=true",
            "load.plan=x",
            "load.pods=2",
            "load.run=a-word-of-its-own",
            "fullnameOverride=a-name-that-is-as-long-as-it-may-be-and-more",
        ],
        ["leaves no room for the number of a pod", "a shorter load.run, or fullnameOverride"],
    ),
    "a name that no Service can have": (
        ["fullnameOverride=My.Vision"],
        ["would be named My.Vision-...", "give fullnameOverride, or another name"],
    ),
    "a name that no label can have": (["nameOverride=my vision"], ["/nameOverride"]),
    "a load's name that would be cut": (
        [
            "load.enabled=true",
            "load.plan=x",
            "load.run=a-word-of-its-own",
            "fullnameOverride=a-name-that-is-as-long-as-it-may-be-and-more",
        ],
        ["63 characters at most", "a shorter load.run, or fullnameOverride"],
    ),
    "labels of all objects that hide the chart's": (
        [r"commonLabels.app\.kubernetes\.io/name=x"],
        ["commonLabels has 'app.kubernetes.io/name'", "take another label"],
    ),
    "labels of pods that hide the chart's": (
        [rf"{MODEL}.podLabels.app\.kubernetes\.io/component=x"],
        [f"{MODEL}.podLabels has 'app.kubernetes.io/component'"],
    ),
    "a disruption budget that no node can be drained under": (
        ["preprocess.pdb.maxUnavailable=0%"],
        ["/preprocess/pdb/maxUnavailable"],
    ),
    "a volume that the topics do not fit": (
        ["kafka.persistence.size=1Gi"],
        ["may keep 4992 MiB", "raise it, or lower kafka.retentionMi"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused(case: str) -> None:
    values, says = WRONG[case]
    with pytest.raises(Refused) as refused:
        render(*setting(*values))
    for part in says:
        assert part in str(refused.value)
    assert "nil pointer" not in str(refused.value)


def test_off_is_off_with_and_without_quotes() -> None:
    """YAML reads a bare `off` as false."""
    link = setting(f"{MODEL}.link=grpc")
    bare = render(*link, "--set-json", "jaeger.mode=false")
    assert bare == render(*link, "--set-string", "jaeger.mode=off")
    assert not any("-jaeger" in found["metadata"]["name"] for found in bare)
