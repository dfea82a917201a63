"""ONNX Runtime: the CPU, or a CUDA device where its GPU build is installed.

What has run where: the CPU path is tested; the CUDA path has run on no machine of ours yet.
"""

from __future__ import annotations

import onnxruntime as ort

from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.inference.backends.backend import Placement, only_float32
from services.messages import Array, Tensors
from services.models.catalogue import ModelSpec


def load(spec: ModelSpec, placement: Placement) -> OnnxRuntimeBackend:
    """A session for `spec.onnx`, whose intra-op threads are those of `placement`. Raises `ConfigurationError`."""
    only_float32(placement, "onnxruntime")
    device = placement.device
    if spec.onnx is None:
        raise ConfigurationError(
            f"model '{spec.name}' has no ONNX file, which backend onnxruntime needs; "
            "give it one in the models file (onnx = FILE), or choose another --backend"
        )
    if not spec.onnx.is_file():
        raise ConfigurationError(
            f"model '{spec.name}': {spec.onnx} is not there; `make models` builds those with weights, "
            "`make models-tasks` the random ones"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = placement.threads
    options.inter_op_num_threads = 1
    # Idle threads that spin burn the CPU which preprocessing needs, and look like inference in the CPU account.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    kind, _, index = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[kind]
    if provider not in ort.get_available_providers():
        raise ConfigurationError(
            f"device '{device}' was asked for, but this ONNX Runtime has only {ort.get_available_providers()}; "
            "install onnxruntime-gpu and a CUDA driver, or use --device cpu"
        )
    if kind == "cuda":
        # A silent fallback would falsify every number.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ort.disable_telemetry_events()  # a server tells nobody what it serves
    try:
        session = ort.InferenceSession(
            str(spec.onnx), options, providers=[(provider, {"device_id": index or "0"} if kind == "cuda" else {})]
        )
    except Exception as error:
        if kind == "cuda":
            raise ConfigurationError(_not_started(device, str(error))) from error
        raise ConfigurationError(
            f"model '{spec.name}': {spec.onnx} cannot be loaded: {error}; is it a whole ONNX file?"
        ) from error
    if session.get_providers()[0] != provider:
        raise ConfigurationError(_not_started(device, f"it uses {session.get_providers()}"))
    return OnnxRuntimeBackend(session, spec)


def _not_started(device: str, cause: str) -> str:
    return (
        f"device '{device}' was asked for, but ONNX Runtime cannot run the model on it: {cause}; "
        "check the CUDA and cuDNN libraries, or use --device cpu"
    )


class OnnxRuntimeBackend:
    """One session."""

    platform = "onnxruntime_onnx"
    emulated = False

    def __init__(self, session: ort.InferenceSession, spec: ModelSpec) -> None:
        self._session: ort.InferenceSession | None = session
        self._on_device = session.get_providers()[0] != "CPUExecutionProvider"
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in spec.outputs]
        there = [output.name for output in session.get_outputs()]
        missing = [name for name in self._outputs if name not in there]
        if missing:
            raise ConfigurationError(
                f"model '{spec.name}': {spec.onnx} has outputs {there}, not {missing}; correct the models file"
            )

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`. On CUDA, ONNX Runtime copies inside `run`: upload and download are part of infer."""
        if self._session is None:
            raise Internal("the backend is closed")
        try:
            results = self._session.run(self._outputs, {self._input: batch})
        except Exception as error:
            raise Internal(f"ONNX Runtime failed: {type(error).__name__}: {error}") from error
        timeline.cut(Stage.INFER, on_device=self._on_device)
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None
