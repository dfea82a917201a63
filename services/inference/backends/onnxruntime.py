"""ONNX Runtime: the CPU, or a CUDA device where its GPU build is installed."""

from __future__ import annotations

import onnxruntime as ort

from services.accounting import Stage, Timeline
from services.errors import ConfigurationError, Internal
from services.messages import Array, Tensors
from services.models.catalogue import ModelSpec


def load(spec: ModelSpec, device: str, threads: int) -> OnnxRuntimeBackend:
    """A session for `spec.onnx` with `threads` intra-op threads. Raises `ConfigurationError`."""
    if spec.onnx is None:
        raise ConfigurationError(f"model '{spec.name}' has no ONNX file, which backend onnxruntime needs")
    if not spec.onnx.exists():
        raise ConfigurationError(f"model '{spec.name}': {spec.onnx} is not there; `make models` builds the default one")
    kind, _, index = device.partition(":")
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if kind == "cuda":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise ConfigurationError(
                f"device '{device}' was asked for, but this ONNX Runtime has only {ort.get_available_providers()}; "
                "install onnxruntime-gpu and a CUDA driver, or use --device cpu"
            )
        # Without the CPU provider behind it: a silent fallback would falsify every number.
        providers = [("CUDAExecutionProvider", {"device_id": index or "0"})]
    elif kind != "cpu":
        raise ConfigurationError(f"unknown device '{device}'; use cpu, cuda or cuda:N")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin burn the CPU which preprocessing needs, and look like inference in the CPU account.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return OnnxRuntimeBackend(ort.InferenceSession(str(spec.onnx), options, providers=providers), spec)
    except Exception as error:
        raise ConfigurationError(f"model '{spec.name}': {spec.onnx} cannot be loaded: {error}") from error


class OnnxRuntimeBackend:
    """One session."""

    platform = "onnxruntime_onnx"
    emulated = False

    def __init__(self, session: ort.InferenceSession, spec: ModelSpec) -> None:
        self._session: ort.InferenceSession | None = session
        self._input = session.get_inputs()[0].name
        self._outputs = [output.name for output in session.get_outputs()]
        missing = {output.name for output in spec.outputs} - set(self._outputs)
        if missing:
            raise ConfigurationError(
                f"model '{spec.name}': the file has outputs {self._outputs}, the models file wants {sorted(missing)}"
            )

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`. On CUDA, ONNX Runtime copies inside `run`: upload and download are part of infer."""
        if self._session is None:
            raise Internal("the backend is closed")
        results = self._session.run(self._outputs, {self._input: batch})
        timeline.cut(Stage.INFER)
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None
