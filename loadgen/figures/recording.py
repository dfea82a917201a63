"""Accelerated models see every image once before anything is measured: then they take what the real ones take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic_ns
from typing import Any

from loadgen import atomic
from loadgen.progress import Display
from loadgen.samples import Sample
from loadgen.targets import open_target
from services.errors import ServiceError
from services.inference.backends.recording import FILE
from services.models.catalogue import ModelSpec

_GRACE_S = 1.0
_MEASURED_ON = "measured-on.json"


def forget_others(models: Iterable[ModelSpec], environment: Mapping[str, Any]) -> None:
    """Times that were measured on another machine than that of `environment`: they are measured anew. Answers stay.

    Before anything is started, for an inference service reads them when it loads its model.
    """
    machine = {key: environment[key] for key in ("cpu", "cpus")}
    here = json.dumps({**machine, "onnxruntime": environment["versions"].get("onnxruntime")}) + "\n"
    for folder in {model.record for model in models if model.record is not None}:
        mark = folder / _MEASURED_ON
        if not mark.exists() or mark.read_text(encoding="utf-8") != here:
            (folder / FILE).unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            atomic.write(mark, here)


def record(
    urls: Mapping[str, str], task: str, samples: Sequence[Sample], timeout_s: float, what: str, display: Display
) -> None:
    """Ask each of `urls` for each image, one after the other. What was recorded before takes no time.

    `what`: begins the progress lines. Raises `ServiceError`.
    """
    for name, url in urls.items():
        target = open_target(url, task, timeout_s)
        try:
            tensors = target.tensors([sample.data for sample in samples])
            for done, (sample, tensor) in enumerate(zip(samples, tensors, strict=True)):
                display(f"{what}: what the real network takes, over {name}", done, len(samples))
                exchange = target.send(tensor, sample.name, monotonic_ns()).result(timeout_s + _GRACE_S)
                if exchange.error is not None:
                    raise ServiceError(f"{sample.name}, over {name}: {exchange.error}: {exchange.message}")
        finally:
            target.close()
