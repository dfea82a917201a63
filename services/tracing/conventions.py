"""Every name that a span of ours has.

First OpenTelemetry's semantic conventions: RPC is stable, messaging is in development
(https://opentelemetry.io/docs/specs/semconv/). Then our own small namespace, `beyond.`, for what has no convention.
"""

from __future__ import annotations

from services.accounting import Fact

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SCOPE = "services.tracing"
NAMESPACE = "beyond-inference"

# --- OpenTelemetry's -------------------------------------------------------------------------------------------------

SERVICE_NAME = "service.name"
SERVICE_NAMESPACE = "service.namespace"
SERVICE_VERSION = "service.version"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
MESSAGING_SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
MESSAGING_DESTINATION = "messaging.destination.name"
MESSAGING_PARTITION = "messaging.destination.partition.id"
KAFKA_OFFSET = "messaging.kafka.offset"
MESSAGE_ID = "messaging.message.id"
BODY_SIZE = "messaging.message.body.size"

# The method of the Open Inference Protocol that every gRPC hop calls.
INFER_METHOD = "inference.GRPCInferenceService/ModelInfer"

# --- ours ------------------------------------------------------------------------------------------------------------

TASK = "beyond.task"
REQUEST_ID = "beyond.request_id"
SAMPLED_BECAUSE = "beyond.sampled_because"  # parent, ratio, slow, error
STAGE = "beyond.stage"
GROUP = "beyond.stage_group"
DURATION = "beyond.duration_ns"  # exact; the span's own times are inset by a microsecond, for display
CPU_TIME = "beyond.cpu_ns"
MODEL = "beyond.model"

# Of the tile that a fact belongs to; system and destination become names of OpenTelemetry's.
OF_FACT: dict[Fact, str] = {
    Fact.REQUEST_BYTES: "beyond.request_bytes",
    Fact.REPLY_BYTES: "beyond.reply_bytes",
    Fact.PARTITION: "beyond.partition",
    Fact.OFFSET: "beyond.offset",
    Fact.ATTEMPT: "beyond.attempt",
    Fact.PUBLISH_NS: "beyond.publish_ns",
    Fact.AGE_NS: "beyond.age_ns",
    Fact.BATCH_SIZE: "beyond.batch_size",
    Fact.BATCH_ID: "beyond.batch_id",
}
