"""TensorRT 10: an ONNX file is compiled for one GPU, once, and the engine is kept (`engine_cache`).

What has run where: the keys, the files, the profile and the progress line are tested. The calls of TensorRT were
written after its reference and checked against the names in the 10.16 bindings, and run in tests with a stand-in for
the library; **none has run with TensorRT or on a GPU yet**.

Sources: https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-1010/migration-guide/ (names since version 10),
.../_static/python-api/infer/Core/ExecutionContext.html and .../Core/ProgressMonitor.html. Version 11 drops the flags
by which a network is allowed less than float32, so it is refused.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt as trt

from services import cuda
from services.accounting import Timeline, monotonic_ns
from services.errors import ConfigurationError, Internal
from services.inference.backends.backend import Placement
from services.inference.backends.engine_build import Progress, profile_shapes
from services.inference.backends.engine_cache import EngineCache, EngineKey, default_folder
from services.messages import Array, Tensors
from services.models.catalogue import ModelSpec

_log = logging.getLogger(__name__)
_MAJOR = "10"


def load(spec: ModelSpec, placement: Placement) -> TensorRtBackend:
    """The engine of `spec.onnx` on the GPU of `placement`, compiled where none is kept. Raises `ConfigurationError`."""
    if spec.onnx is None:
        raise ConfigurationError(
            f"model '{spec.name}' has no ONNX file, which backend tensorrt needs; "
            "give it one in the models file (onnx = FILE), or choose another --backend"
        )
    if placement.device == "cpu":
        raise ConfigurationError("backend tensorrt runs on NVIDIA's GPUs only; use --device cuda, or another --backend")
    if trt.__version__.partition(".")[0] != _MAJOR:
        raise ConfigurationError(
            f"backend tensorrt is written for TensorRT {_MAJOR}, this is {trt.__version__}; "
            "pip install 'tensorrt>=10,<11'"
        )
    cuda.require(placement.device)
    if not spec.onnx.is_file():
        raise ConfigurationError(f"model '{spec.name}': {spec.onnx} is not there; `make models` builds the default one")
    model = spec.onnx.read_bytes()
    lane = cuda.open_lane(placement.device)  # from here on it is this thread's current device, TensorRT's too
    gpu = cuda.describe(placement.device)
    key = EngineKey(
        hashlib.sha256(model).hexdigest(),
        gpu.name,
        gpu.capability,
        trt.__version__,
        gpu.cuda,
        placement.precision,
        placement.max_batch,
        spec.recipe.shape,
        placement.workspace_mib,
    )
    cache = EngineCache(Path(placement.engine_cache) if placement.engine_cache else default_folder())
    logger = _Logger()
    runtime = trt.Runtime(logger)
    engine = _engine(spec, model, key, cache, logger, runtime, placement)
    return TensorRtBackend(engine, runtime, logger, spec, lane)


class _Logger(trt.ILogger):  # type: ignore[misc] # the library may be absent where types are checked
    """TensorRT's messages in our log; its informational ones are for debugging."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        levels = trt.ILogger.Severity
        self._levels = {
            levels.INTERNAL_ERROR: logging.ERROR,
            levels.ERROR: logging.ERROR,
            levels.WARNING: logging.WARNING,
        }

    def log(self, severity: Any, message: str) -> None:
        _log.log(self._levels.get(severity, logging.DEBUG), "TensorRT: %s", message)


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc] # as above
    """`Progress`, as TensorRT wants it."""

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._progress.phase_start(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        return self._progress.step_complete(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        self._progress.phase_finish(phase_name)


def _engine(
    spec: ModelSpec,
    model: bytes,
    key: EngineKey,
    cache: EngineCache,
    logger: _Logger,
    runtime: Any,
    placement: Placement,
) -> Any:
    """An `ICudaEngine`: the kept one, or one that is compiled now."""
    engine = _kept(spec, key, cache, runtime)
    if engine is not None:
        return engine
    with cache.building(spec.name, key):
        engine = _kept(spec, key, cache, runtime)  # whoever built meanwhile built it for all
        if engine is not None:
            return engine
        begun = monotonic_ns()
        _log.info(
            "model '%s': compiling a TensorRT engine for %s, %s, batches of 1 to %d; this takes minutes, once",
            spec.name,
            key.gpu,
            key.precision,
            key.max_batch,
        )
        serialized = _compile(spec, model, logger, placement)
        _log.info("model '%s': compiled in %.0f s", spec.name, (monotonic_ns() - begun) / 1e9)
        cache.store(spec.name, key, serialized)
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise ConfigurationError(
            f"model '{spec.name}': the engine that TensorRT has just built cannot be loaded; the log has its reasons"
        )
    return engine


def _kept(spec: ModelSpec, key: EngineKey, cache: EngineCache, runtime: Any) -> Any:
    serialized = cache.load(spec.name, key)
    if serialized is None:
        return None
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        path = cache.path(spec.name, key)
        _log.warning("engine %s does not suit this TensorRT or this GPU, whatever its key says; it is built anew", path)
    return engine


def _compile(spec: ModelSpec, model: bytes, logger: _Logger, placement: Placement) -> bytes:
    """The serialized engine. Raises `ConfigurationError`."""
    builder = trt.Builder(logger)
    network = builder.create_network()  # since version 10 the batch is always explicit
    parser = trt.OnnxParser(network, logger)
    # From memory: what was hashed is what is compiled. Weights in files beside it would escape the key: refused.
    if not parser.parse(model):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ConfigurationError(
            f"model '{spec.name}': {spec.onnx} cannot be loaded by TensorRT: {reasons}; is it a whole ONNX file, with "
            "its weights inside, and with operators that TensorRT knows?"
        )
    if network.num_inputs != 1:
        raise ConfigurationError(
            f"model '{spec.name}': {spec.onnx} has {network.num_inputs} inputs; one is served here"
        )
    there = [network.get_output(i).name for i in range(network.num_outputs)]
    missing = [output.name for output in spec.outputs if output.name not in there]
    if missing:
        raise ConfigurationError(
            f"model '{spec.name}': {spec.onnx} has outputs {there}, not {missing}; correct the models file"
        )
    entrance = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(
        entrance.name, *profile_shapes(spec.name, tuple(entrance.shape), spec.recipe, placement.max_batch)
    )
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, placement.workspace_mib << 20)
    monitor = _Monitor(Progress(lambda line: _log.info("model '%s': compiling: %s", spec.name, line)))
    config.progress_monitor = monitor
    match placement.precision:
        case "float16":
            config.set_flag(trt.BuilderFlag.FP16)
        case "bfloat16":
            config.set_flag(trt.BuilderFlag.BF16)
        case "float32":
            config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT takes it by itself where the GPU has it
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ConfigurationError(
            f"model '{spec.name}': TensorRT cannot compile {spec.onnx}; the log has its reasons; "
            "is there enough memory on the GPU (--max-batch, --workspace-mib)?"
        )
    return bytes(serialized)


class TensorRtBackend:
    """One engine and one context, on the lane of the thread that loaded it."""

    platform = "tensorrt_plan"
    emulated = False

    def __init__(self, engine: Any, runtime: Any, logger: _Logger, spec: ModelSpec, lane: cuda.Lane) -> None:
        self._keeps = runtime, logger  # which an engine must not outlive
        self._engine = engine
        self._context: Any = engine.create_execution_context()
        if self._context is None:
            raise ConfigurationError(
                f"model '{spec.name}': the GPU has no room for the engine; stop what else runs there, or use fewer "
                "--instances or a smaller --max-batch"
            )
        self._lane = lane
        self._input = ""
        self._types: dict[str, np.dtype[Any]] = {}  # of all outputs: TensorRT wants an address for each
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._input = name
                self._takes = _dtype(engine, name)
            else:
                self._types[name] = _dtype(engine, name)
        self._wanted = [output.name for output in spec.outputs]

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`."""
        if self._context is None:
            raise Internal("the backend is closed")
        if batch.dtype != self._takes:
            raise Internal(f"TensorRT failed: the engine takes {self._takes}, not {batch.dtype}")
        try:
            outputs: Tensors = self._lane.run(batch, self._compute, timeline)
        except Internal:
            raise
        except Exception as error:
            raise Internal(f"TensorRT failed: {type(error).__name__}: {error}") from error
        return outputs

    def _compute(self, tensor: Any) -> dict[str, Any]:
        """Enqueue; `tensor` and what this returns are on the device, and belong to the lane's stream."""
        context = self._context
        if not context.set_input_shape(self._input, tuple(tensor.shape)):
            raise Internal(f"TensorRT failed: the engine's profile has no room for {list(tensor.shape)}")
        context.set_tensor_address(self._input, tensor.data_ptr())
        results = {}
        for name, dtype in self._types.items():
            shape = tuple(context.get_tensor_shape(name))
            if -1 in shape:
                raise Internal(
                    f"TensorRT failed: the shape {list(shape)} of output '{name}' depends on the input's values, which "
                    "is not served here; leave such operators (NonMaxSuppression) out of the ONNX file"
                )
            results[name] = cuda.empty_like(tensor, shape, dtype)
            context.set_tensor_address(name, results[name].data_ptr())
        if not context.execute_async_v3(self._lane.stream.cuda_stream):
            raise Internal("TensorRT failed: it could not enqueue the batch; the log has its reasons")
        return {name: results[name] for name in self._wanted}

    def close(self) -> None:
        """See `Backend.close`."""
        if self._context is not None:
            self._context = self._engine = None
            self._lane.close()


def _dtype(engine: Any, name: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    except TypeError:
        raise ConfigurationError(
            f"tensor '{name}' of the model is {engine.get_tensor_dtype(name)}, which numpy does not have; "
            "export the model with float32 inputs and outputs"
        ) from None
    return dtype
