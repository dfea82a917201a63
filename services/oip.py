"""What the Open Inference Protocol asks besides inference: alive, ready, metadata, configuration, statistics.

Bytes to bytes, so that a server needs no generated servicer. With `wire`, the only user of `services/pb`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from services.errors import InvalidInput, UnknownModel
from services.messages import TensorSpec
from services.pb import open_inference_pb2 as pb
from services.statistics import Duration, Statistics
from services.wire import DATATYPE_OF, VERSION

SERVICE = "inference.GRPCInferenceService"
NAME = "beyond-inference"
# Names of Triton's extensions that are answered here; its clients look for them.
_EXTENSIONS = ("model_configuration", "statistics")


class ModelFacts(NamedTuple):
    """What a server knows of one of its models. `max_batch` 0: requests carry their own batch dimension."""

    name: str
    platform: Callable[[], str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    instances: int
    max_batch: int
    max_delay_s: float
    ready: Callable[[], bool]
    statistics: Callable[[], Statistics]


def control_methods(
    version: str, models: Mapping[str, ModelFacts], ready: Callable[[], bool]
) -> dict[str, Callable[[bytes], bytes]]:
    """Method name -> what answers it; raises `UnknownModel` and `InvalidInput` while answering."""

    def find(name: str) -> ModelFacts:
        try:
            return models[name]
        except KeyError:
            raise UnknownModel(f"there is no model '{name}' here; there is {', '.join(models) or 'none'}") from None

    def server_live(_: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def server_ready(_: Any) -> Any:
        return pb.ServerReadyResponse(ready=ready())

    def model_ready(request: Any) -> Any:
        return pb.ModelReadyResponse(ready=find(request.name).ready())

    def server_metadata(_: Any) -> Any:
        return pb.ServerMetadataResponse(name=NAME, version=version, extensions=_EXTENSIONS)

    def model_metadata(request: Any) -> Any:
        model = find(request.name)
        response = pb.ModelMetadataResponse(name=model.name, versions=[VERSION], platform=model.platform())
        for fields, specs in ((response.inputs, model.inputs), (response.outputs, model.outputs)):
            for spec in specs:
                fields.add(name=spec.name, datatype=_datatype(spec), shape=spec.shape)
        return response

    def model_config(request: Any) -> Any:
        return pb.ModelConfigResponse(config=_config(find(request.name)))

    def model_statistics(request: Any) -> Any:
        wanted = [find(request.name)] if request.name else models.values()
        return pb.ModelStatisticsResponse(model_stats=[_statistics(model.name, model.statistics()) for model in wanted])

    return {
        "ServerLive": _method(pb.ServerLiveRequest, server_live),
        "ServerReady": _method(pb.ServerReadyRequest, server_ready),
        "ModelReady": _method(pb.ModelReadyRequest, model_ready),
        "ServerMetadata": _method(pb.ServerMetadataRequest, server_metadata),
        "ModelMetadata": _method(pb.ModelMetadataRequest, model_metadata),
        "ModelConfig": _method(pb.ModelConfigRequest, model_config),
        "ModelStatistics": _method(pb.ModelStatisticsRequest, model_statistics),
    }


def metadata_request(model: str) -> bytes:
    """The question ModelMetadata."""
    return bytes(pb.ModelMetadataRequest(name=model).SerializeToString())


def platform_of(response: bytes) -> str:
    """The platform in an answer to it. Raises `InvalidInput`."""
    try:
        return str(pb.ModelMetadataResponse.FromString(response).platform)
    except DecodeError as error:
        raise InvalidInput(f"the message is no ModelMetadataResponse: {error}") from None


def descriptors() -> DescriptorPool:
    """The pool that describes the protocol, for a server's reflection."""
    return pb.DESCRIPTOR.pool


def _method(message: Any, answer: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def method(data: bytes) -> bytes:
        try:
            request = message.FromString(data)
        except DecodeError as error:
            raise InvalidInput(f"the message is no {message.__name__}: {error}") from None
        return bytes(answer(request).SerializeToString())

    return method


def _datatype(spec: TensorSpec) -> str:
    return DATATYPE_OF[np.dtype(spec.dtype)]


def _config(model: ModelFacts) -> Any:
    batched = model.max_batch > 0
    config = pb.ModelConfig(
        name=model.name,
        platform=model.platform(),
        backend=model.platform().partition("_")[0],
        max_batch_size=model.max_batch,
        instance_group=[pb.ModelInstanceGroup(name=model.name, count=model.instances)],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )
    if model.max_batch > 1:
        config.dynamic_batching.max_queue_delay_microseconds = round(model.max_delay_s * 1e6)
    for fields, specs in ((config.input, model.inputs), (config.output, model.outputs)):
        for spec in specs:
            name = _datatype(spec)
            # With a maximum batch size, dims leave the batch dimension out.
            fields.add(
                name=spec.name,
                data_type=pb.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"),
                dims=spec.shape[1:] if batched else spec.shape,
            )
    return config


def _statistics(name: str, s: Statistics) -> Any:
    message = pb.ModelStatistics(
        name=name,
        version=VERSION,
        last_inference=s.last_ms,
        inference_count=s.success.times,
        execution_count=s.executions,
        inference_stats=pb.InferStatistics(
            success=_duration(s.success),
            fail=_duration(s.fail),
            queue=_duration(s.queue),
            compute_input=_duration(s.input),
            compute_infer=_duration(s.infer),
            compute_output=_duration(s.output),
        ),
    )
    for size, (into, infer, out) in sorted(s.batches.items()):
        message.batch_stats.add(
            batch_size=size,
            compute_input=_duration(into),
            compute_infer=_duration(infer),
            compute_output=_duration(out),
        )
    return message


def _duration(duration: Duration) -> Any:
    return pb.StatisticDuration(count=duration.times, ns=duration.ns)
