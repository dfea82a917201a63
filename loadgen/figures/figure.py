"""A figure: a question of the paper as a plan with steps. A TOML file: that of a plan (loadgen/plan.py), and

[figure]
title = "..."
question = "..."
paper = "..."                   # its figure, where that is known; "" where it is not
source = "abstract"             # abstract | secondary: who says so
differs = "..."                 # one honest sentence on why ours is another
overlays = ["e3-zero-load.yaml"]    # the same for a cluster: charts/beyond-inference/experiments/
full = 10                       # at full size all numbers of requests, seconds and files are multiplied by this
[figure.full_samples]           # and there are these [samples], too
faces-2 = 8
[[step]]                        # what is started, one after the other; all loads are sent to each
name = "on the CPU"
transports = ["fused", "grpc"]  # rows of services/local/deployments.py, started together and asked in turn
models = ["mtcnn", "identifier"]        # served by the door; model = "..." where it is one
models_file = "figures-models.toml"     # beside the plan; the project's own if it is left out
fused = ["mtcnn"]               # models whose engine is in the door's process, whatever the transport
engine = "--max-batch 8"        # further flags for who holds an engine
engine_of = { identifier = "--max-batch 32" }   # and for one model's alone
link = { kafka = "acks=1" }     # what URLs of links over a kind of broker have behind the question mark
kafka = { brokers = 3 }         # BrokerSettings (services/local/broker.py) of the Kafka that is started
redis = { appendfsync = "always" }      # RedisServerSettings, likewise
preprocess = "--decode full"    # further flags for the door
replicas = [1, 1]               # of the door, of inference
inference_cpus = 1              # that inference has to itself; the door, brokers and the generator have the others
engines = { "inference alone" = "grpc" }        # also asked, in turn: a transport's first inference service, no door
beside = [{ name = "alone", transports = ["grpc"], model = "nothing" }] # also started, and asked in turn, too
sizes = ["medium"]              # of [samples]; all if it is left out
loads = ["1 in flight"]         # all if it is left out
needs = ["cuda"]                # else NOT RUN: cuda, dali, tensorrt, torch, redis
at = { k = 8 }                  # where on the figure's axes it is
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.errors import PlanError
from loadgen.plan import Load, Plan, parse_plan
from loadgen.samples import MOST
from services.local.deployments import transport_of

PLANS = Path(__file__).parent.parent / "plans"
SOURCES = ("", "abstract", "secondary")


class Beside(NamedTuple):
    """Other deployments that are asked in turn with a step's: of the same images, on the same CPUs, another model."""

    name: str
    transports: tuple[str, ...]
    model: str

    def target(self, transport: str) -> str:
        """What one of them is called among the step's."""
        return f"{self.name}, {transport}"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """See the module."""

    name: str
    transports: tuple[str, ...]
    models: tuple[str, ...] = ("efficientnet-lite0",)
    models_file: Path | None = None
    fused: tuple[str, ...] = ()
    engine: tuple[str, ...] = ()
    engine_of: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    link: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kafka: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    redis: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess: tuple[str, ...] = ()
    replicas: tuple[int, int] = (1, 1)
    inference_cpus: int = 0
    engines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beside: tuple[Beside, ...] = ()
    sizes: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    at: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Of all in the plan that its numbers are made by, and of its models file: another one means that they are others.
    fingerprint: str = ""

    @property
    def model(self) -> str:
        """The first one, which is asked."""
        return self.models[0]

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """See the module."""

    id: str
    title: str
    question: str
    paper: str
    source: str
    differs: str
    overlays: tuple[str, ...]
    plan: Plan
    steps: tuple[Step, ...]

    def plan_of(self, step: Step) -> Plan:
        """What is asked of it."""
        plan = self.plan
        loads = tuple(_only(load, step.sizes) for load in plan.loads if not step.loads or load.name in step.loads)
        samples = {size: count for size, count in plan.samples.items() if not step.sizes or size in step.sizes}
        return dataclasses.replace(plan, name=self.id, samples=samples, loads=loads)


def _only(load: Load, sizes: Sequence[str]) -> Load:
    def chosen(by_size: Mapping[str, Any]) -> dict[str, Any]:
        return {size: value for size, value in by_size.items() if not sizes or size in sizes}

    return dataclasses.replace(load, schedule=chosen(load.schedule), requests=chosen(load.requests))


_KEYS = {"title", "question", "paper", "source", "differs", "overlays", "full", "full_samples"}
_STEP = {field.name for field in dataclasses.fields(Step)} - {"fingerprint"} | {"model"}


def ids() -> list[str]:
    """All figures, in order."""
    return sorted((path.stem.partition("-")[0] for path in PLANS.glob("e[0-9]*-*.toml")), key=lambda id_: int(id_[1:]))


def load_figure(id_: str, *, full: bool = False, folder: Path = PLANS) -> Figure:
    """The figure of that name, reduced or at full size. Raises `PlanError`."""
    found = list(folder.glob(f"{id_}-*.toml"))
    if len(found) != 1:
        raise PlanError(f"there is no figure '{id_}'; there is {', '.join(ids())}")
    path = found[0]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path} is not TOML: {error}") from None
    about, steps = raw.pop("figure", {}), raw.pop("step", [])
    unknown = about.keys() - _KEYS
    if unknown or not steps or about.get("source", "") not in SOURCES:
        raise PlanError(
            f"{path}: [figure] has {', '.join(sorted(unknown)) or 'all keys'}, source '{about.get('source', '')}' and "
            f"{len(steps)} steps; its keys are {', '.join(sorted(_KEYS))}, a source is abstract or secondary"
        )
    times = int(about.get("full", 1)) if full else 1
    if full:
        raw["samples"] = {**raw.get("samples", {}), **about.get("full_samples", {})}
    common = f"{json.dumps(raw, sort_keys=True)}{times}"
    read = tuple(_step(entry, f"{path}: [[step]] {i}", folder, common) for i, entry in enumerate(steps, 1))
    names = [step.folder for step in read]
    if len(set(names)) < len(names):
        raise PlanError(f"{path}: two steps have the same name, up to punctuation; give each its own")
    # A cell that fits nobody would go unnoticed: names of sizes and loads are checked here, once.
    plan = _times(parse_plan(raw, f"plan {path}", path.parent), times)
    for step in read:
        odd = {*step.sizes} - {*plan.samples} | {*step.loads} - {load.name for load in plan.loads}
        if odd:
            raise PlanError(f"{path}: step '{step.name}' names {', '.join(sorted(odd))}, which the plan has not")
    return Figure(
        id_,
        about.get("title", id_),
        about.get("question", ""),
        about.get("paper", ""),
        about.get("source", ""),
        about.get("differs", ""),
        tuple(about.get("overlays", ())),
        plan,
        read,
    )


def _times(plan: Plan, times: int) -> Plan:
    loads = tuple(
        dataclasses.replace(
            load,
            requests={size: count * times for size, count in load.requests.items()},
            at_most_s=load.at_most_s * times,
        )
        for load in plan.loads
    )
    return dataclasses.replace(
        plan,
        loads=loads,
        samples={size: min(MOST, count * times) for size, count in plan.samples.items()},
        warmup_s=plan.warmup_s * (2 if times > 1 else 1),
    )


def _step(entry: Mapping[str, Any], where: str, folder: Path, common: str) -> Step:
    unknown = entry.keys() - _STEP
    if unknown or "name" not in entry or not entry.get("transports"):
        raise PlanError(
            f"{where}: it needs a name and transports, and {', '.join(sorted(unknown)) or 'nothing'} is odd"
        )
    fields = dict(entry)
    if "model" in fields:
        fields["models"] = [fields.pop("model")]
    for key in ("transports", "models", "fused", "sizes", "loads", "needs", "replicas"):
        if key in fields:
            fields[key] = tuple(fields[key])
    for key in ("engine", "preprocess"):
        fields[key] = tuple(str(fields.get(key, "")).split())
    fields["engine_of"] = {model: tuple(str(flags).split()) for model, flags in entry.get("engine_of", {}).items()}
    try:
        fields["beside"] = tuple(
            Beside(row["name"], tuple(row["transports"]), row["model"]) for row in entry.get("beside", ())
        )
    except (KeyError, TypeError):
        raise PlanError(f"{where}: each of `beside` has a name, transports and a model") from None
    apart = {name for name in entry["transports"] if transport_of(name) != "fused"}
    strange = {*entry.get("engines", {}).values()} - apart
    if strange:
        raise PlanError(
            f"{where}: `engines` names {', '.join(sorted(strange))}, which are none of its transports with an "
            f"inference service: {', '.join(sorted(apart)) or 'it has none'}"
        )
    targets = [*entry["transports"], *entry.get("engines", {})]
    targets += [other.target(name) for other in fields["beside"] for name in other.transports]
    twice = sorted({name for name in targets if targets.count(name) > 1})
    if twice:
        raise PlanError(f"{where}: two of what it asks are called {', '.join(twice)}; give each a name of its own")
    if "models_file" in fields:
        fields["models_file"] = folder / fields["models_file"]
    made_by = common + json.dumps(entry, sort_keys=True) + _text(fields.get("models_file"))
    return Step(**fields, fingerprint=hashlib.sha256(made_by.encode()).hexdigest()[:16])


def _text(path: Path | None) -> str:
    return path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
