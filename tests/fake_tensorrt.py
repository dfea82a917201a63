"""A stand-in for TensorRT 10's Python library, as far as the backend uses it, by its reference.

It shows that the backend calls what it means to call, in an order that makes sense; not that TensorRT likes it. Its one
model has input `images` and outputs `logits` (the mean of each channel) and `unused`. What it does with memory is real:
it reads and writes at the addresses that it is given.
"""

from __future__ import annotations

import ctypes
import enum
import json
from types import ModuleType
from typing import Any

import numpy as np

GOOD, NEVER_COMPILES = b"good model", b"model that is never compiled"


class State:
    """What was done, and what shall happen."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.declared = (-1, 3, 8, 8)
        self.refuses = False  # to deserialize what it has not built in this process
        self.log: Any = None


def library(state: State, version: str = "10.16.1.11") -> ModuleType:
    """A module to put into `sys.modules`."""
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class IProgressMonitor:
        pass

    class DataType(enum.Enum):
        FLOAT = 0

    class Tensor:
        def __init__(self, name: str, shape: tuple[int, ...]) -> None:
            self.name, self.shape = name, shape

    class Network:
        num_inputs = 0

        def get_input(self, index: int) -> Tensor:
            return [Tensor("images", state.declared)][index]

        num_outputs = 2

        def get_output(self, index: int) -> Tensor:
            return Tensor(("logits", "unused")[index], (-1, 3))

    class ParserError:
        def desc(self) -> str:
            return "no ONNX"

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Network, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            self._network = network

        def parse(self, model: bytes) -> bool:
            if not model.endswith(b"model") and model != NEVER_COMPILES:
                self.num_errors = 1
                return False
            self._network.num_inputs = 1
            self._network.model = model  # type: ignore[attr-defined]
            return True

        def get_error(self, index: int) -> ParserError:
            return [ParserError()][index]

    class Profile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            assert len(shapes) == 3
            self.shapes = {name: [list(shape) for shape in shapes]}

    class Config:
        progress_monitor: Any = None

        def __init__(self) -> None:
            self.flags = {"TF32"}
            self.workspace = 0
            self.profiles: list[Profile] = []

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return 0

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            assert pool == "WORKSPACE"
            self.workspace = size

        def set_flag(self, flag: str) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: str) -> None:
            self.flags.discard(flag)

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            state.log = logger

        def create_network(self) -> Network:
            return Network()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Any, config: Config) -> bytearray | None:
            state.done.append("build")
            monitor = config.progress_monitor
            assert isinstance(monitor, IProgressMonitor)
            monitor.phase_start("Building engine", None, 2)
            assert monitor.step_complete("Building engine", 0)
            monitor.phase_finish("Building engine")
            if network.model == NEVER_COMPILES:
                state.log.log(ILogger.Severity.ERROR, "no kernel")
                return None
            facts = {"shapes": config.profiles[0].shapes, "flags": sorted(config.flags), "workspace": config.workspace}
            return bytearray(json.dumps(facts).encode())

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)

        def deserialize_cuda_engine(self, serialized: bytes) -> Engine | None:
            if state.refuses and "build" not in state.done:
                return None
            state.done.append("deserialize")
            return Engine(json.loads(serialized))

    class Engine:
        num_io_tensors = 3

        def __init__(self, facts: dict[str, Any]) -> None:
            self.facts = facts

        def get_tensor_name(self, index: int) -> str:
            return ("images", "logits", "unused")[index]

        def get_tensor_mode(self, name: str) -> str:
            return "INPUT" if name == "images" else "OUTPUT"

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType.FLOAT

        def create_execution_context(self) -> Context:
            return Context(self)

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._shapes = engine.facts["shapes"]["images"]
            self._shape: tuple[int, ...] = ()
            self._addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert name == "images"
            least, _, most = self._shapes
            self._shape = shape
            return len(shape) == len(least) and all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True))

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (self._shape[0], 3)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 77
            assert set(self._addresses) == {"images", "logits", "unused"}
            images = _at(self._addresses["images"], self._shape)
            _at(self._addresses["logits"], (self._shape[0], 3))[...] = images.mean((2, 3))
            return True

    trt.ILogger, trt.IProgressMonitor, trt.OnnxParser, trt.Builder, trt.Runtime = (
        ILogger,
        IProgressMonitor,
        OnnxParser,
        Builder,
        Runtime,
    )
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", {"WORKSPACE": "WORKSPACE"}, type=str)
    trt.BuilderFlag = enum.Enum("BuilderFlag", {name: name for name in ("FP16", "BF16", "TF32")}, type=str)
    trt.TensorIOMode = enum.Enum("TensorIOMode", {"INPUT": "INPUT", "OUTPUT": "OUTPUT"}, type=str)
    trt.nptype = lambda type_: {DataType.FLOAT: np.float32}[type_]
    return trt  # type: ignore[no-any-return]


def _at(address: int, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address)).reshape(shape)
