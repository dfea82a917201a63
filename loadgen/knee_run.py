"""A knee, searched for at a real door: warm it, know the generator's own ceiling, then let the search ask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from loadgen.errors import PlanError
from loadgen.generator import ceiling_rps
from loadgen.knee import Found, Limits, Objective, Search, Trial, as_json
from loadgen.live import Watched
from loadgen.progress import Display
from loadgen.runner import GRACE_S, sent
from loadgen.schedule import parse_schedule
from loadgen.sender import Job
from loadgen.senders import Door, Senders, default_count, open_senders
from loadgen.target import Exchange, NullTarget, Target
from loadgen.targets import open_target
from loadgen.verdict import SATURATED
from loadgen.warmup import warm_up
from services.errors import ServiceError

_TARGET, _SIZE = "door", "knee"
# A request that takes so many times the limit has failed it; the door is told so as its deadline.
_PATIENCE = 20.0
_LEAST_PATIENCE_S = 1.0
_WARM_UP_S = 10.0
_WARM_UP_SHARE = 0.2
# One after the other, they stand behind what an overloaded trial left.
_SETTLING = 5


class Wanted(NamedTuple):
    """What is searched for, and where. `senders` None: as many as this machine has room for."""

    url: str
    task: str
    objective: Objective
    arrivals: str
    start_rps: float
    precision: float
    confidence: float
    budget_s: float
    seed: int
    senders: int | None


def check(wanted: Wanted) -> None:
    """Raises `PlanError` for what makes no search."""
    if wanted.arrivals not in ("poisson", "constant"):
        raise PlanError(f"--arrivals '{wanted.arrivals}' is neither poisson nor constant")
    for flag, value in (("--from", wanted.start_rps), ("--budget-s", wanted.budget_s)):
        if not 0 < value < math.inf:
            raise PlanError(f"{flag} is {value:g}; give a number above 0")
    if not 0.01 <= wanted.precision <= 1:
        raise PlanError(f"--precision is {wanted.precision:g}; give a share, 0.01 to 1")
    if not 0.6 <= wanted.confidence < 1:
        raise PlanError(f"--confidence is {wanted.confidence:g}; give a share, 0.6 or more and below 1")
    if wanted.senders is not None and wanted.senders < 1:
        raise PlanError(f"--senders is {wanted.senders}; give at least 1")


def patience_s(objective: Objective) -> float:
    """After how long a request is given up."""
    return max(_LEAST_PATIENCE_S, _PATIENCE * objective.limit_ms / 1e3)


def find(
    wanted: Wanted, images: Sequence[bytes], display: Display, say: Callable[[Trial], None]
) -> tuple[Found, dict[str, Any]]:
    """What was found, and the content of its file. Raises `PlanError`, `ServiceError`, `GeneratorError`."""
    check(wanted)
    begin = time.monotonic()
    patience = patience_s(wanted.objective)
    target = open_target(wanted.url, wanted.task, patience)
    senders = open_senders(
        wanted.senders or default_count(), Door({_TARGET: wanted.url}, wanted.task, patience), {_TARGET: target}
    )
    try:
        senders.load(_SIZE, images)
        display("what the generator itself can send", 0, 0)
        ceiling = ceiling_rps(senders, _SIZE)
        emulated = _ready(target, wanted, images, display)
        limits = Limits(
            wanted.budget_s - (time.monotonic() - begin),
            wanted.start_rps,
            SATURATED * ceiling,
            wanted.precision,
            wanted.confidence,
            patience,
        )
        asking = _Asking(wanted, senders, display, patience)
        found = Search(wanted.objective, limits, asking.measure, say).run()
    except TimeoutError as error:
        raise ServiceError(f"{wanted.url}: {error}") from None
    finally:
        senders.close()
        target.close()
    about = {
        "url": wanted.url,
        "task": wanted.task,
        "arrivals": wanted.arrivals,
        "seed": wanted.seed,
        "label": "EMULATED" if emulated else "MEASURED",
        "generator": {"senders": senders.count, "ceiling_rps": ceiling},
        "budget_s": wanted.budget_s,
    }
    return found, as_json(found, wanted.objective, limits, about)


def _ready(target: Target, wanted: Wanted, images: Sequence[bytes], display: Display) -> bool:
    """Warm it; whether its model is emulated."""
    emulated = target.emulated()
    if not isinstance(target, NullTarget):
        display(f"warming up {wanted.url}", 0, 0)
        tensors = target.tensors(images)
        budget = min(_WARM_UP_S, _WARM_UP_SHARE * wanted.budget_s)
        warm_up(target, tensors, budget, patience_s(wanted.objective) + GRACE_S, lambda: 0)
    return emulated


class _Asking:
    """Trials at the door, each with arrivals of its own."""

    def __init__(self, wanted: Wanted, senders: Senders, display: Display, patience: float) -> None:
        self._wanted = wanted
        self._senders = senders
        self._display = display
        self._timeout_s = patience + GRACE_S
        self._count = 0

    def measure(self, rate_rps: float, requests: int) -> Sequence[Exchange]:
        """See `loadgen.knee.Measure`."""
        self._count += 1
        settling = parse_schedule("closed(1)", _SETTLING, 0)
        self._senders.run(Job(_TARGET, _SIZE, settling, f"settle-{self._count}-", self._timeout_s, math.inf))
        text = f"{self._wanted.arrivals}({rate_rps:.6f})"
        schedule = parse_schedule(text, requests, self._wanted.seed + self._count)
        job = Job(_TARGET, _SIZE, schedule, f"trial-{self._count}-", self._timeout_s, math.inf)
        what = f"trial {self._count}: {rate_rps:.1f}/s, {requests} requests, {requests / rate_rps:.0f} s"
        with self._display.watching(Watched(what, requests, rate_rps, self._senders.reading)):
            return sent(self._senders.run(job).exchanges)
