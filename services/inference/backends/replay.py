"""An accelerator that is k times as fast as what was measured here. Label: EMULATED.

After "AI Tax: The Hidden Cost of AI Data Center Applications" (Richins et al. 2021, ACM TOCS): to see what is left when
accelerators make the DNN faster, its measured time is divided by k, and the rest of the system stays as it is. So that
it does stay, the answers are the real model's: a detector that finds five faces sends five crops on, whatever k is.

* The real model is loaded, and takes a batch of each of several sizes; the median time of `infer` is kept
  (`recording`). Where the folder has times already, they are taken: a sweep over k divides one measurement, and what
  was measured on a GPU node can be replayed on a laptop.
* A batch is answered with recorded outputs when its time divided by k is over. Looking up is part of that time; where
  it takes longer, the batch takes longer, and the log says so.
* What is not recorded is computed once by the real model, in its real time, and recorded: the log says that too. Send
  the samples through once before you measure (the load generator's warm-up computes nothing). Where the real model
  cannot be loaded (no GPU here), it is an error instead.
* Moving data to a device and back is not measured, and nothing is said of it: `infer` is the only stage.

Sleeping overshoots by about 0.1 ms (measured: docs/gpu.md); the ledger has the time that was really taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import statistics
import time
from collections.abc import Callable

import numpy as np

from services.accounting import Clock, Stage, Timeline, monotonic_ns
from services.errors import ConfigurationError, Internal
from services.inference import backends
from services.inference.backends import files
from services.inference.backends.backend import Backend, Placement
from services.inference.backends.recording import Recording, Times, digest
from services.messages import Array, Tensors
from services.models.catalogue import ModelSpec

_log = logging.getLogger(__name__)

_REPEATS = 7
_LONGEST_WAIT_S = 600.0  # for another instance that measures
_SAY_EVERY_NS = 10_000_000_000


def load(spec: ModelSpec, placement: Placement) -> ReplayBackend:
    """The model of `spec`, k times as fast. Raises `ConfigurationError`."""
    if spec.acceleration is None or spec.record is None:
        raise ConfigurationError(
            f"model '{spec.name}' has no `acceleration`, which backend replay needs; give it one in the models file "
            "(acceleration = 8, record = 'FOLDER'), or choose another --backend"
        )
    recording = Recording(spec.record)
    real: Backend | None = None
    try:
        real = _real(spec, placement)
    except ConfigurationError as error:
        if not _suffices(recording, spec, placement):
            raise
        _log.warning(
            "model '%s': the real one cannot be loaded (%s); what %s does not have, will be refused",
            spec.name,
            error.message,
            spec.record,
        )
    try:
        times = _times(spec, placement, recording, real)
    except BaseException:
        if real is not None:
            real.close()
        raise
    _log.warning(
        "model '%s' is EMULATED: %g times as fast as %s (%.2f ms for one); it answers what that answered",
        spec.name,
        spec.acceleration,
        times.on,
        times.at(1),
    )
    return ReplayBackend(times, spec.acceleration, recording, real)


def _suffices(recording: Recording, spec: ModelSpec, placement: Placement) -> bool:
    """Whether the times of this model are there, so that nothing need be measured."""
    try:
        times = recording.times()
        return times is not None and times.largest >= placement.max_batch and times.model == _source(spec)
    except ConfigurationError:
        return False


def _real(spec: ModelSpec, placement: Placement) -> Backend:
    bare = dataclasses.replace(spec, acceleration=None, record=None)
    more = {f.name: getattr(placement, f.name) for f in dataclasses.fields(placement)}
    device, threads, max_batch, real = (more.pop(name) for name in ("device", "threads", "max_batch", "real"))
    return backends.load(real or backends.default_for(bare), bare, device, threads, max_batch, **more)


def _times(spec: ModelSpec, placement: Placement, recording: Recording, real: Backend | None) -> Times:
    """Those that are recorded, or what is measured now. One measures, others wait: two at once would take longer."""
    source = _source(spec)
    try:
        with files.alone(recording.folder / "lock", _LONGEST_WAIT_S):
            times = recording.times()
            if times is not None and times.model != source:
                raise ConfigurationError(
                    f"model '{spec.name}': {recording.folder} is a recording of another model; remove that folder, or "
                    "name another (record)"
                )
            if real is not None and (times is None or times.largest < placement.max_batch):
                times = Times(source, _on(placement, real), real.platform, measure(real, spec, placement.max_batch))
                recording.keep_times(times)
    except files.Busy:
        raise ConfigurationError(
            f"another process has been measuring into {recording.folder} for {_LONGEST_WAIT_S:.0f} s; stop it"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the recording {recording.folder} cannot be written to: {error}") from None
    if times is None:  # it was there before the lock was
        raise ConfigurationError(f"model '{spec.name}': the recording {recording.folder} has just been removed")
    return times


def _source(spec: ModelSpec) -> str:
    """Of what the model computes: its file or constructor, its weights, its recipe."""
    said = hashlib.sha256(repr((spec.architecture, spec.seed, spec.recipe, spec.outputs)).encode())
    for file in (spec.onnx, spec.exported, spec.weights):
        if file is not None:
            if not file.is_file():
                raise ConfigurationError(
                    f"model '{spec.name}': {file} is not there; correct its path in the models file"
                )
            said.update(file.read_bytes())
    return said.hexdigest()


def _on(placement: Placement, real: Backend) -> str:
    threads = "" if placement.device != "cpu" else f", {placement.threads} thread{'s' * (placement.threads > 1)}"
    return f"{real.platform} on {placement.device}{threads}, {placement.precision}"


def measure(real: Backend, spec: ModelSpec, max_batch: int) -> dict[int, float]:
    """Batch size -> the median of `infer`, in ms: for 1, 2, 4, ... and `max_batch`."""
    sizes = sorted({1 << i for i in range(max_batch.bit_length())} | {max_batch})
    # Noise: some kernels are quicker on zeros, and denormals slower.
    noise = np.random.default_rng(0).integers(0, 256, (max_batch, *spec.recipe.shape), dtype=np.uint8)
    batch = noise if spec.recipe.dtype == "uint8" else (noise.astype(spec.recipe.dtype) - 127) / 128
    batch = batch.astype(spec.recipe.dtype, copy=False)
    measured = {}
    for size in sizes:
        spent = []
        for _ in range(_REPEATS):
            timeline = Timeline("measurement")
            real.infer(batch[:size], timeline)
            spent.append(sum(tile.duration_ns for tile in timeline.tiles if tile.stage is Stage.INFER))
        measured[size] = statistics.median(spent) / 1e6
    return measured


class ReplayBackend:
    """Answers from a recording, in the recorded time divided by k."""

    emulated = True

    def __init__(
        self,
        times: Times,
        acceleration: float,
        recording: Recording,
        real: Backend | None,
        *,
        clock: Clock = monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.platform = f"emulated_{acceleration:g}x_{times.platform}"
        self._times = times
        self._acceleration = acceleration
        self._recording = recording
        self._real = real
        self._clock = clock
        self._sleep = sleep
        self._closed = False
        self._said_ns: dict[str, int] = {}

    def infer(self, batch: Array, timeline: Timeline) -> Tensors:
        """See `Backend.infer`; the outputs that were recorded. Cuts `infer` only."""
        if self._closed:
            raise Internal("the backend is closed")
        end = self._clock() + round(self._times.at(len(batch)) * 1e6 / self._acceleration)
        names = [digest(item) for item in batch]
        known = {name: self._recording.outputs(name) for name in names}
        found = {name: outputs for name, outputs in known.items() if outputs is not None}
        found |= self._learn(batch, names, [name for name in known if name not in found])
        outputs = {key: np.stack([found[name][key] for name in names]) for key in found[names[0]]}
        left = end - self._clock()
        if left > 0:
            self._sleep(left / 1e9)
        elif left < 0:
            self._say(f"finding what was recorded took {-left / 1e6:.2f} ms longer than the emulated time")
        timeline.cut(Stage.INFER, on_device=True)
        return outputs

    def _learn(self, batch: Array, names: list[str], missing: list[str]) -> dict[str, Tensors]:
        """Compute what is not recorded, and record it."""
        if not missing:
            return {}
        if self._real is None:
            raise Internal(
                f"{len(missing)} of {len(names)} inputs are not in the recording {self._recording.folder}, and the "
                "real model is not here; record them where it is: serve the same samples there with this models file"
            )
        rows = [names.index(name) for name in missing]
        computed = self._real.infer(np.ascontiguousarray(batch[rows]), Timeline("recording"))
        learnt = {name: {key: value[i].copy() for key, value in computed.items()} for i, name in enumerate(missing)}
        for name, outputs in learnt.items():
            self._recording.keep(name, outputs)
        self._say(f"{len(missing)} inputs that were not recorded were computed, in real time; measure when all are")
        return learnt

    def _say(self, what: str) -> None:
        """Each kind of thing once in ten seconds."""
        kind, now = what.lstrip("0123456789 ")[:20], self._clock()
        if now - self._said_ns.get(kind, now - _SAY_EVERY_NS) >= _SAY_EVERY_NS:
            self._said_ns[kind] = now
            _log.warning("%s: %s", self.platform, what)

    def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
        if self._real is not None:
            self._real.close()
            self._real = None
