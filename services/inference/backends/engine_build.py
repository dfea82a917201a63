"""What compiling an engine needs that is not TensorRT's own: its shapes, and a line that says how far it is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from services.accounting import Clock, monotonic_ns
from services.errors import ConfigurationError
from services.messages import Recipe

_SAY_EVERY_NS = 10_000_000_000

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def profile_shapes(model: str, declared: Sequence[int], recipe: Recipe, max_batch: int) -> Shapes:
    """The least, the best and the largest shape of an input that is `declared` in an ONNX file (-1: any).

    The recipe fills what is left open. The kernels are chosen for the largest batch: under load, where it matters,
    batches are full. Raises `ConfigurationError` where the declared shape has no room for these.
    """
    item = recipe.shape
    cause = f"its input is {list(declared)}"
    if len(declared) != 1 + len(item) or any(d not in (-1, i) for d, i in zip(declared[1:], item, strict=True)):
        raise ConfigurationError(
            f"model '{model}' does not run on {recipe.dtype} {[1, *item]}, which its recipe gives it: {cause}"
        )
    if declared[0] != -1 and (declared[0], max_batch) != (1, 1):
        raise ConfigurationError(
            f"model '{model}' does not run on {recipe.dtype} {[max_batch, *item]}, which its recipe and "
            f"--max-batch {max_batch} give it: {cause}; export it with a dynamic batch dimension"
            f"{', or use --max-batch 1' if declared[0] == 1 else ''}"
        )
    return (1, *item), (max_batch, *item), (max_batch, *item)


class Progress:
    """How far a compilation is, as lines of a log, at most one in ten seconds. Called from several threads.

    Only the outermost phase counts: those inside it begin anew again and again.
    """

    def __init__(self, say: Callable[[str], object], clock: Clock = monotonic_ns) -> None:
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}
        self._said_ns = clock()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """TensorRT begins a phase; one without a parent is outermost."""
        if not parent_phase:
            with self._lock:
                self._steps[phase_name] = max(1, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """True: go on."""
        with self._lock:
            steps = self._steps.get(phase_name)
            now = self._clock()
            if steps is not None and now - self._said_ns >= _SAY_EVERY_NS:
                self._said_ns = now
                self._say(f"{phase_name}, {min(100, 100 * (step + 1) // steps)} %")
        return True

    def phase_finish(self, phase_name: str) -> None:
        """TensorRT has left a phase."""
        with self._lock:
            self._steps.pop(phase_name, None)
