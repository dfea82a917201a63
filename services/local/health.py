"""The standard gRPC health question."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def serving(host_port: str, timeout_s: float = 2.0) -> bool:
    """Whether `grpc.health.v1.Health/Check` says SERVING."""
    with grpc.insecure_channel(host_port) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
