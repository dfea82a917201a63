"""What can be started: a table from transport to the processes that it needs. Adding one is one row."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlencode

from services.local.broker import ALONE, BrokerSettings
from services.local.errors import LocalStackError
from services.local.redis_server import IN_MEMORY, RedisServerSettings

# malloc keeps its pages: fresh ones for every large message cost more than the message (docs/adr/0004).
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
}


class ProcessSpec(NamedTuple):
    """One process. `host_port`: where it answers health; `metrics`: scrapes. `door`: requests come in here.

    One that is no door holds an engine, and nothing else.
    """

    name: str
    command: tuple[str, ...]
    host_port: str
    metrics: str
    door: bool


_NONE: Mapping[str, Any] = MappingProxyType({})
# Where frames can be published, by the client that takes them -> its scheme.
CONSUMED: Mapping[str, str] = MappingProxyType({"kafka": "kafka", "kafka-python": "kafka+python"})


class Options(NamedTuple):
    """What is the same for all deployments.

    `models`: served by every door. `engine`, `preprocess`: further flags for who holds an engine, and for the door.
    `engine_of`: still further ones for one model's engine, by model; they win. `fused`: models whose engine is in the
    door's process whatever the transport, so that only the others cross it. `link`: what the URLs of links over a kind
    of broker have behind the question mark, by its name in the table: `{"kafka": "acks=1&linger_ms=5"}`. `consume`:
    the client of Kafka by which doors take frames from it, too, by its name in the table; empty: they do not.
    `inference_cpus`: that engines with a process of their own have to themselves, all together; 0: all share all.
    """

    models: tuple[str, ...]
    models_file: str = ""
    engine: tuple[str, ...] = ()
    preprocess: tuple[str, ...] = ()
    engine_of: Mapping[str, tuple[str, ...]] = _NONE
    fused: tuple[str, ...] = ()
    link: Mapping[str, str] = _NONE
    consume: str = ""
    inference_cpus: int = 0
    log_level: str = "INFO"
    spans: str = ""  # where they go
    suffix: str = ""  # of topics: two deployments must not take one another's work
    kafka: BrokerSettings = ALONE  # of one that is started here
    redis: RedisServerSettings = IN_MEMORY  # likewise

    def check(self) -> None:
        """Raise `LocalStackError` for names that are none of `models`, and for what frames cannot be published to."""
        if self.consume and self.consume not in CONSUMED:
            raise LocalStackError(f"frames are not taken from '{self.consume}'; use {' or '.join(CONSUMED)}")
        if not self.models or len(set(self.models)) < len(self.models):
            raise LocalStackError(f"a deployment serves one model or several different ones, not {self.models}")
        for what, names in (("fused", self.fused), ("with flags of its own", tuple(self.engine_of))):
            unknown = [name for name in names if name not in self.models]
            if unknown:
                raise LocalStackError(f"{what}: {', '.join(unknown)}; the models are {', '.join(self.models)}")


def frames(options: Options, deployment: str, bootstrap: str) -> str:
    """The URL from which the doors of a deployment take frames; empty where they do not."""
    if not options.consume:
        return ""
    name = deployment.replace("+", ".")
    results = f"results.{name}{options.suffix}"
    return f"{CONSUMED[options.consume]}://{bootstrap}/images.{name}{options.suffix}?results={results}"


def names(text: str) -> tuple[str, ...]:
    """Of models, as a command line has them: separated by commas."""
    return tuple(filter(None, text.split(",")))


def engine_flags(given: Sequence[str]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """What `--engine` said: flags of all engines, and by model those of its own."""
    every: tuple[str, ...] = ()
    own: dict[str, tuple[str, ...]] = {}
    for text in given:
        if text.startswith("-"):
            every += tuple(text.split())
        else:
            model, _, flags = text.partition("=")
            own[model] = own.get(model, ()) + tuple(flags.split())
    return every, own


class Replicas(NamedTuple):
    """How many processes of each service."""

    preprocess: int = 1
    inference: int = 1


class Ports(NamedTuple):
    """Of one process: its own, and that of its metrics."""

    own: int
    metrics: int


class Deployment(NamedTuple):
    """`broker`: "kafka", "redis", or empty where there is none. `url`: of a model's link; None where there is no hop.

    `form`: in which images cross it, where that is not the model's own input.
    """

    broker: str
    url: Callable[[Link], str] | None
    form: str = ""

    def remote(self, options: Options) -> tuple[str, ...]:
        """The models whose engine has a process of its own."""
        return () if self.url is None else tuple(name for name in options.models if name not in options.fused)

    def build(
        self,
        options: Options,
        doors: Sequence[Ports],
        engines: Mapping[str, Sequence[Ports]],
        bootstrap: str,
        consumed: str = "",
    ) -> list[ProcessSpec]:
        """The processes in the order of their start, doors last. `engines`: by model, of each that is `remote`.

        `consumed`: see `frames`.
        """
        specs: list[ProcessSpec] = []
        links: list[str] = []
        for model in options.models:
            own = options.engine_of.get(model, ())
            if self.url is None or model not in engines:
                links += ["--link", f"{model}=fused:{_query(model, own)}"]
                continue
            url = self.url(Link(options, model, engines[model], bootstrap, self.form))
            links += ["--link", f"{model}={url}", *(["--cut", f"{model}={self.form}"] if self.form else [])]
            consume = ["--consume", url] if self.broker else []
            flags = ("--model", model, *_common(options), *options.engine, *own, *consume)
            label = f"inference-{model}" if len(options.models) > 1 else "inference"
            specs += [_process("inference", label, index, ports, flags) for index, ports in enumerate(engines[model])]
        engine = options.engine if len(engines) < len(options.models) else ()
        entrance = ("--consume", consumed) if consumed else ()
        flags = (*_common(options), *options.preprocess, *links, *engine, *entrance)
        return specs + [_process("preprocess", "preprocess", index, ports, flags) for index, ports in enumerate(doors)]


class Link(NamedTuple):
    """What makes the URL of one model's link. `engines`: the ports of its engine processes."""

    options: Options
    model: str
    engines: Sequence[Ports]
    bootstrap: str
    form: str


def _process(service: str, label: str, index: int, ports: Ports, flags: Sequence[str]) -> ProcessSpec:
    host_port, metrics = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", f"services.{service}", "--listen", host_port, "--metrics", metrics]
    name = f"{label}-{index + 1}" if index else label
    return ProcessSpec(name, (*command, *flags), host_port, metrics, door=service == "preprocess")


def _common(options: Options) -> list[str]:
    models = ["--models-file", options.models_file] if options.models_file else []
    spans = ["--spans", options.spans] if options.spans else []
    return ["--log-level", options.log_level, *models, *spans]


def _query(model: str, flags: Sequence[str]) -> str:
    """An engine's own flags, as the link of an engine in the door's process has them: `?max_batch=8`."""
    words = [word for flag in flags for word in flag.split("=", 1)]
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") for name in names):
        raise LocalStackError(f"the flags of {model}'s engine are not --NAME VALUE, each: {' '.join(flags)}")
    given = {name.removeprefix("--").replace("-", "_"): value for name, value in zip(names, values, strict=True)}
    return f"?{urlencode(given)}" if given else ""


def _grpc(link: Link) -> str:
    return "grpc://" + ",".join(f"127.0.0.1:{ports.own}" for ports in link.engines)


def _brokered(scheme: str, topic: str) -> Deployment:
    broker = "redis" if scheme == "redis" else "kafka"

    def url(link: Link) -> str:
        form = f".{link.form}" if link.form else ""
        query = link.options.link.get(broker, "")
        path = f"{link.model}.{topic}{link.options.suffix}{form}"
        return f"{scheme}://{link.bootstrap}/{path}" + (f"?{query}" if query else "")

    return Deployment(broker, url)


TRANSPORTS: dict[str, Deployment] = {
    "fused": Deployment("", None),
    "grpc": Deployment("", _grpc),
    "kafka": _brokered("kafka", "librdkafka"),
    "kafka-python": _brokered("kafka+python", "python"),
    "redis": _brokered("redis", "redis"),
}

# In which images may cross the hop, beside the model's own input (docs/cut.md).
FORMS = ("jpeg", "u8", "f16")


# The transports, and each that has a hop once more with every form: `kafka`, `kafka+u8`, ...
TABLE: dict[str, Deployment] = TRANSPORTS | {
    f"{name}+{form}": deployment._replace(form=form)
    for name, deployment in TRANSPORTS.items()
    if deployment.url is not None
    for form in FORMS
}


def transport_of(name: str) -> str:
    """Of a row of the table."""
    return name.partition("+")[0]
