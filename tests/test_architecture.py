"""The rule of imports: the file tree explains the system only as long as it is kept."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDARD_AND_NUMPY = "what imports nothing of ours"

# module (longest prefix wins) -> what of ours it may import (prefixes)
CORE = {"services.accounting", "services.messages", "services.errors"}
SEAMS = {"services.transports.transport", "services.preprocess.preprocessor", "services.tasks.task"}
RULES: dict[str, set[str]] = {
    "services.accounting": set(),
    "services.errors": set(),
    "services.messages": CORE,
    "services.cut": CORE,
    "services.statistics": set(),
    "services.cuda": CORE | {"services.cuda_timing"},
    "services.cuda_timing": CORE,
    "services.metrics": CORE,
    "services.watching": CORE
    | {
        "services.batching",
        "services.link",
        "services.metrics",
        "services.preprocess.server",
        "services.tracing.context",
        "services.tracing.tracer",
        "services.transports.transport",
        "services.version",
    },
    "services.prometheus": CORE | {"services.metrics"},
    "services.logs": set(),
    "services.settings": {"services.errors"},
    "services.batching": CORE,
    "services.wire": CORE | {"services.pb"},
    "services.oip": CORE | {"services.pb", "services.statistics", "services.wire"},
    "services.tracing": CORE | {"services.tracing"},
    "services.version": set(),
    "services.link": CORE | SEAMS | {"services.cut", "services.logs", "services.statistics", "services.wire"},
    "services.pipeline": CORE | SEAMS | {"services.cut", "services.batching", "services.link"},
    "services.models": CORE | {"services.models"},
    "services.tasks": CORE | {"services.tasks"},
    "services.transports": CORE | {"services.transports"},
    "services.preprocess": CORE | {"services.cuda", "services.preprocess"},
    "services.preprocess.server": CORE
    | SEAMS
    | {"services.link", "services.logs", "services.pipeline", "services.statistics", "services.wire"},
    "services.preprocess.published": CORE
    | {"services.preprocess.server", "services.transports.transport", "services.wire"},
    "services.preprocess.__main__": {"services"},
    "services.inference.backends": CORE | {"services.cuda", "services.inference.backends", "services.models.catalogue"},
    "services.inference.backends.torch": CORE
    | {"services.cuda", "services.inference.backends", "services.models.catalogue", "services.models.networks"},
    "services.inference.engine": CORE
    | {"services.batching", "services.inference.backends.backend", "services.models.catalogue", "services.statistics"},
    "services.inference.intake": CORE
    | {"services.batching", "services.cut", "services.preprocess.normalize", "services.preprocess.preprocessor"},
    "services.inference.__main__": {"services"},
    "services.serving": {
        "services.version",
        "services.errors",
        "services.oip",
        "services.transports.grpc",
        "services.transports.transport",
    },
    "services.enroll": CORE
    | {"services.tasks.gallery", "services.transports", "services.transports.transport", "services.wire"},
    "services.process": {"services.errors", "services.logs", "services.serving", "services.settings"},
    "services.credentials": {
        "services.errors",
        "services.settings",
        "services.transports.kafka_security",
        "services.transports.redis_security",
    },
    "services.wiring": {"services"},
    "services.local": {"services.local"},
    "loadgen": CORE
    | {
        "loadgen",
        "services.local",
        "services.oip",
        "services.preprocess.image_header",
        "services.settings",
        "services.tracing",
        "services.transports.grpc",
        "services.transports.transport",
        "services.version",
        "services.wire",
    },
    # It does what a door does: prepares, and submits over a link.
    "loadgen.engine_target": CORE
    | {
        "loadgen",
        "services.link",
        "services.models.catalogue",
        "services.oip",
        "services.preprocess.preprocessor",
        "services.transports.grpc",
    },
    # Over a broker it is a caller like a link, and proves who it is in the same way.
    "loadgen.target": CORE
    | {"loadgen", "services.link", "services.oip", "services.transports.grpc", "services.transports.transport"}
    | {"services.wire"},
    "loadgen.targets": CORE | {"loadgen", "services.credentials", "services.settings", "services.transports"},
    # Experiments start what they measure, and say beforehand what of it is not here.
    "loadgen.figures": CORE
    | {
        "loadgen",
        "services.inference.backends.recording",
        "services.local",
        "services.models.catalogue",
        "services.settings",
    },
}

# One foreign library, one file (gRPC: the transport, the server around it, the way to a collector, and the local
# stack's health question).
FOREIGN: dict[str, set[str]] = {
    "grpc": {"services.transports.grpc", "services.tracing.destination", "services.local.health"},
    "grpc_health": {"services.serving", "services.local.health"},
    "grpc_reflection": {"services.serving"},
    "google": {"services.wire", "services.oip", "services.tracing.destination"},
    "prometheus_client": {"services.prometheus"},
    "opentelemetry": {"services.tracing.tree", "services.tracing.destination"},
    "cv2": {"services.preprocess.opencv", "loadgen.samples"},
    "onnxruntime": {"services.inference.backends.onnxruntime"},
    "onnx": {"services.models.efficientnet_lite0", "services.models.mtcnn", "services.models.onnx_file"},
    # The networks, what runs them, what writes them as ONNX; what moves tensors to a GPU, and pixels there.
    "torch": {
        "services.models.networks",
        "services.models.seeded",
        "services.cuda",
        "services.inference.backends.torch",
        "services.preprocess.gpu",
        "services.preprocess.dali",
    },
    "nvidia": {"services.preprocess.dali"},
    "torchvision": {"services.models.networks"},
    "tensorrt": {"services.inference.backends.tensorrt"},
    "confluent_kafka": {"services.transports.kafka_librdkafka"},
    "kafka": {"services.transports.kafka_python", "services.transports.kafka_python_fixes"},
    "redis": {"services.transports.redis"},
    "matplotlib": {"loadgen.figures.plots"},
    "skimage": {"loadgen.samples"},
    "sklearn": {"loadgen.samples"},
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("services", "loadgen"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not name.startswith("services.pb"):
                found[name] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules that a file imports; `from a import b` counts as a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else str(node.module))
    return found


def within(module: str, prefixes: set[str]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


MODULES = modules()


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"services"}))
def test_the_rule_of_imports_holds(module: str) -> None:
    rule = max((prefix for prefix in RULES if within(module, {prefix})), key=len, default=None)
    assert rule is not None or module in ("services.inference", "services.pb"), f"{module} has no rule: add one"
    allowed = RULES[rule] if rule else set()
    for imported in imports(MODULES[module], set(MODULES)):
        top = imported.partition(".")[0]
        if top in ("services", "loadgen"):
            assert within(imported, allowed), f"{module} imports {imported}; its rule ({rule}) allows {sorted(allowed)}"
        for library, homes in FOREIGN.items():
            if top == library:
                assert within(module, homes), f"{module} imports {library}; only {sorted(homes)} may"


def test_the_core_is_pure() -> None:
    for module in CORE | {"services.statistics"}:
        foreign = {name.partition(".")[0] for name in imports(MODULES[module], set(MODULES))}
        assert "services" not in foreign or module == "services.messages"
        assert not foreign & set(FOREIGN)


def test_only_settings_read_the_environment() -> None:
    for module, path in MODULES.items():
        if within(module, {"services.settings", "services.local"}):
            continue
        text = path.read_text(encoding="utf-8")
        assert "os.environ" not in text, f"{module} reads the environment"
        assert "getenv" not in text, f"{module} reads the environment"
