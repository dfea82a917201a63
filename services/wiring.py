"""Settings -> objects: the composition root. The only module that knows every implementation's name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from services import tasks, transports, watching
from services.credentials import kafka_security, redis_security
from services.cut import Form, forms
from services.errors import ConfigurationError
from services.inference import backends
from services.inference.engine import Engine
from services.inference.intake import Intake
from services.link import Link, Remote, expose
from services.messages import BatchDone, Finished, TensorSpec
from services.metrics import Metrics
from services.models.catalogue import ModelSpec, load_catalogue
from services.oip import ModelFacts
from services.pipeline import Pipeline, preprocessing_stage
from services.preprocess import preprocessor
from services.preprocess.preprocessor import Preprocessor
from services.preprocess.published import Published
from services.preprocess.server import INPUT, Door, Entrance
from services.prometheus import MetricsServer
from services.serving import Service
from services.settings import (
    DecodingSettings,
    EngineSettings,
    InferenceSettings,
    PreprocessSettings,
    cpu_limit,
    overridden,
)
from services.tasks.faces import ASKED
from services.tasks.task import Setup, Task
from services.tracing.destination import open_destination
from services.tracing.tracer import Tracer, sampler
from services.transports.transport import Handle, Listener, Transport
from services.version import version

_log = logging.getLogger(__name__)

FUSED = "fused"
# Of those that a door takes from a broker, which waits with the rest; far below what its queues hold.
_FRAMES_IN_HAND = 64
DEFAULT_LINKS = ("efficientnet-lite0=fused:",)


def build_engine(
    spec: ModelSpec, settings: EngineSettings, batched: Callable[[BatchDone], object] | None = None
) -> Engine:
    """The model, loaded, on its instances. Raises `ConfigurationError`. `batched`: learns of every batch."""
    name = settings.backend or backends.default_for(spec)
    engine = Engine(
        spec,
        lambda: backends.load(
            name,
            spec,
            settings.device,
            settings.threads,
            settings.max_batch,
            precision=settings.precision,
            engine_cache=settings.engine_cache,
            workspace_mib=settings.workspace_mib,
        ),
        instances=settings.instances,
        max_batch=settings.max_batch,
        max_delay_s=settings.max_delay_ms / 1e3,
        capacity=settings.queue_capacity,
        batched=batched,
    )
    if spec.law is not None:
        _log.warning("model '%s' is EMULATED: a service-time law stands in for a device, outputs are zeros", spec.name)
    elif spec.random:
        _log.warning("model '%s' is a random network: FOR TIMING ONLY, its answers mean nothing", spec.name)
    return engine


def build_preprocessor(settings: DecodingSettings) -> Preprocessor:
    """What decodes and prepares. Raises `ConfigurationError`."""
    return preprocessor.load(settings.preprocessor, settings.max_pixels, scaled=settings.decode == "scaled")


def _decoding_threads(settings: DecodingSettings) -> int:
    return settings.preprocess_instances or cpu_limit()


def build_inference(settings: InferenceSettings) -> Service:
    """The inference service, not yet serving. Raises `ConfigurationError`."""
    spec = _model(_catalogue(settings.models_file), settings.model)
    tracer = build_tracer(settings.spans, "inference")
    engine = build_engine(spec, settings.engine, tracer.offer_batch if tracer is not None else None)
    intake = Intake(
        engine.submit,
        spec.recipe,
        build_preprocessor(settings.decoding),
        instances=_decoding_threads(settings.decoding),
        capacity=settings.decoding.preprocess_queue_capacity,
    )
    metrics = watching.new_metrics("inference") if settings.metrics else None

    def handle(url: str) -> Handle:
        if metrics is None:
            return expose(intake.submit, spec.outputs)
        return expose(intake.submit, spec.outputs, answered=watching.at_the_engine(metrics, spec.name, spec.task, url))

    kafka, redis = kafka_security(settings.kafka), redis_security(settings.redis)
    listeners = [(transports.listen(url, kafka, redis), handle(url)) for url in settings.consume]
    facts = ModelFacts(
        spec.name,
        lambda: engine.platform,
        spec.inputs,
        spec.outputs,
        settings.engine.instances,
        settings.engine.max_batch,
        settings.engine.max_delay_ms / 1e3,
        lambda: True,
        engine.statistics,
    )
    if metrics is not None:
        metrics.add_task(spec.task)
        watching.watch_queue(metrics, "inference", spec.name, engine.queue)
        watching.watch_queue(metrics, "intake", spec.name, intake.queue)
        for url, (listener, _) in zip(settings.consume, listeners, strict=True):
            watching.watch_listener(metrics, url, listener)
    service = Service(
        "inference",
        settings.listen,
        settings.server_threads,
        handle("grpc:"),
        {spec.name: facts},
        listeners=listeners,
        called=None if metrics is None else metrics.call,
        connection_age_s=settings.connection_age_s,
        health_listen=settings.health,
        on_close=[intake.close, engine.close, *_closing(tracer), *_serve_metrics(metrics, settings.metrics, tracer)],
    )
    if metrics is not None:
        watching.watch_listener(metrics, "grpc:", service.grpc)
    return service


def build_preprocess(settings: PreprocessSettings) -> Service:
    """The preprocess service, not yet serving. Raises `ConfigurationError`."""
    if settings.admission_limit >= settings.door_threads:
        raise ConfigurationError(
            f"--admission-limit {settings.admission_limit} can never be reached with --door-threads "
            f"{settings.door_threads}: calls would wait for a thread instead of being refused; give more threads"
        )
    catalogue = _catalogue(settings.models_file)
    tracer = build_tracer(
        settings.spans, "preprocess", settings.sample_ratio, settings.slow_ms, settings.forced_spans_per_s
    )
    metrics = watching.new_metrics("preprocess") if settings.metrics else None
    kafka, redis = kafka_security(settings.kafka), redis_security(settings.redis)
    models = [entry.partition("=")[0] for entry in settings.link or DEFAULT_LINKS]
    cut = forms(settings.cut, models)
    links: dict[str, Link] = {}
    urls: dict[str, str] = {}
    by_task: dict[str, Task] = {}
    platforms: dict[str, Callable[[], str]] = {}
    for entry in settings.link or DEFAULT_LINKS:
        model, separator, url = entry.partition("=")
        if not separator or not url:
            raise ConfigurationError(
                f"--link '{entry}' is not MODEL=URL, e.g. efficientnet-lite0=grpc://inference:8002"
            )
        spec = _model(catalogue, model)
        task = tasks.load(spec.task, _setup(spec, settings.gallery))
        if task.name in by_task:
            raise ConfigurationError(
                f"models '{by_task[task.name].model}' and '{model}' both answer task '{task.name}'; link one of them"
            )
        by_task[task.name] = task
        _check_cut(spec, task, url, cut[model])
        link, platforms[task.name] = _link(
            spec, url, settings.engine, lambda url: transports.connect(url, kafka, redis), tracer, metrics
        )
        links[model] = link._replace(form=cut[model])
        if metrics is not None:
            metrics.add_task(task.name, watching.scheme(url))
        urls[model] = url
    _check_asked(by_task, catalogue)
    _check_crops(by_task, cut)
    if settings.gallery and ASKED not in by_task:
        raise ConfigurationError(f"--gallery {settings.gallery} is for task '{ASKED}', for which no model is linked")
    stage = preprocessing_stage(
        build_preprocessor(settings.decoding),
        instances=_decoding_threads(settings.decoding),
        max_batch=settings.preprocess_max_batch,
        max_delay_s=settings.preprocess_max_delay_ms / 1e3,
        capacity=settings.decoding.preprocess_queue_capacity,
    )
    door = Door(
        Pipeline(by_task, links, stage),
        admission_limit=settings.admission_limit,
        default_timeout_s=settings.timeout_s,
        served=None if tracer is None else lambda request: _offer(tracer, request),
        answered=None if metrics is None else watching.at_the_door(metrics),
    )
    listeners = _entrances(settings, door, list(by_task), metrics)
    if metrics is not None:
        watching.watch_door(metrics, door)
        watching.watch_queue(metrics, "preprocess", "", stage)
    facts = {
        name: ModelFacts(
            name,
            platforms[name],
            (TensorSpec(INPUT, "object", (-1,)),),
            task.outputs,
            _decoding_threads(settings.decoding),
            0,
            0.0,
            lambda model=task.model: links[model].healthy(),  # type: ignore[misc]
            lambda name=name: door.statistics(name),  # type: ignore[misc]
        )
        for name, task in by_task.items()
    }
    service = Service(
        "preprocess",
        settings.listen,
        settings.door_threads,
        door,
        facts,
        listeners=listeners,
        reachable=lambda: next(
            (f"{urls[m]} is not reachable" for m, link in links.items() if not link.healthy()), None
        ),
        called=None if metrics is None else metrics.call,
        connection_age_s=settings.connection_age_s,
        health_listen=settings.health,
        on_close=[
            *(link.close for link in links.values()),
            stage.close,
            *_closing(tracer),
            *_serve_metrics(metrics, settings.metrics, tracer),
        ],
    )
    if metrics is not None:
        watching.watch_listener(metrics, "grpc:", service.grpc)
    return service


def _entrances(
    settings: PreprocessSettings, door: Door, by_task: Sequence[str], metrics: Metrics | None
) -> list[tuple[Listener, Handle]]:
    """The brokers that a door takes frames from. Raises `ConfigurationError`."""
    if settings.consume_task and settings.consume_task not in by_task:
        raise ConfigurationError(
            f"--consume-task '{settings.consume_task}' is no task of this door; it has {', '.join(by_task)}"
        )
    kafka, redis = kafka_security(settings.kafka), redis_security(settings.redis)
    found: list[tuple[Listener, Handle]] = []
    for url in settings.consume:
        source = watching.Topic.of(url)
        if not source.topic:
            raise ConfigurationError(
                f"--consume '{url}' is no topic of a broker, e.g. kafka://host:9092/images?results=results"
            )
        listener = transports.listen(_with_workers(url), kafka, redis)
        answered = None if metrics is None else watching.at_the_door(metrics, url)
        entrance = Entrance(answered=answered, system=source.system, destination=source.topic)
        found.append((listener, Published(door, by_task, settings.consume_task, entrance)))
        if metrics is not None:
            watching.watch_listener(metrics, url, listener)
    return found


def _with_workers(url: str) -> str:
    """A door's handler blocks until the answer is there: as many workers as there may be frames in hand."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    options.setdefault("prefetch", str(_FRAMES_IN_HAND))
    options.setdefault("workers", options["prefetch"])
    return urlunsplit(parts._replace(query=urlencode(options)))


def build_tracer(
    spans: str, where: str, ratio: float = 0.0, slow_ms: float = 0.0, forced_per_s: float = 0.0
) -> Tracer | None:
    """What makes spans in the process that the ledger calls `where`; None where they go nowhere.

    Raises `ConfigurationError`.
    """
    if not spans:
        return None
    return Tracer(open_destination(spans), sampler(ratio, slow_ms, forced_per_s), version(), where)


def _offer(tracer: Tracer, request: Finished) -> str | None:
    """The trace of its spans, if it gets some."""
    if "ledger-holder" in request.headers:  # the client emits the tree, with itself at its root
        return None
    root = tracer.offer(request)
    return None if root is None else root.trace_id.hex()


def _closing(tracer: Tracer | None) -> tuple[Callable[[], None], ...]:
    return () if tracer is None else (tracer.close,)


def _serve_metrics(metrics: Metrics | None, listen: str, tracer: Tracer | None) -> tuple[Callable[[], None], ...]:
    """What ends it. Raises `ConfigurationError`."""
    if metrics is None:
        return ()
    if tracer is not None:
        watching.watch_spans(metrics, tracer)
    server = MetricsServer(listen, metrics)
    _log.info("metrics are at http://%s/metrics", server.host_port)
    return (server.close,)


def _link(
    spec: ModelSpec,
    url: str,
    settings: EngineSettings,
    connect: Callable[[str], Transport],
    tracer: Tracer | None,
    metrics: Metrics | None,
) -> tuple[Link, Callable[[], str]]:
    if watching.scheme(url) == FUSED:
        settings = overridden(settings, _options_of_fused(url), f"link '{url}'")
        engine = build_engine(spec, settings, tracer.offer_batch if tracer is not None else None)
        if metrics is not None:
            watching.watch_queue(metrics, "inference", spec.name, engine.queue)
        return Link(engine.submit, None, engine.close), lambda: engine.platform
    remote = Remote(connect(url))
    if metrics is not None:
        watching.watch_link(metrics, spec.name, url, remote)
    # What is emulated is so wherever it runs: whoever reads the platform labels its numbers by it.
    platform = ("emulated over " if spec.emulated else "") + url.partition(":")[0]
    return Link(remote.submit, remote.probe, remote.close, remote.healthy), lambda: platform


def _options_of_fused(url: str) -> str:
    """`fused:` or `fused:?max_batch=8`: what is behind the question mark. Raises `ConfigurationError`."""
    rest = url.removeprefix(f"{FUSED}:")
    if rest and not rest.startswith("?"):
        raise ConfigurationError(f"link '{url}' is not fused: or fused:?OPTION=VALUE&..., e.g. fused:?max_batch=8")
    return rest[1:]


def _check_cut(spec: ModelSpec, task: Task, url: str, form: Form) -> None:
    """Raise `ConfigurationError` for a form in which this model's images cannot cross."""
    if form is Form.F32:
        return
    if watching.scheme(url) == FUSED:
        raise ConfigurationError(
            f"--cut {spec.name}={form.value}: nothing crosses a fused link; leave it out, or give the model a link"
        )
    if spec.recipe.dtype != "float32":
        raise ConfigurationError(
            f"--cut {spec.name}={form.value}: the model takes {spec.recipe.dtype}, which crosses as it is; leave it out"
        )
    if form is Form.JPEG and task.needs_pixels:
        raise ConfigurationError(
            f"--cut {spec.name}=jpeg: task '{task.name}' looks at the image's pixels again, so they are decoded at the "
            "door; use u8, f16 or f32"
        )


def _check_crops(by_task: Mapping[str, Task], cut: Mapping[str, Form]) -> None:
    for task in by_task.values():
        for asked in (by_task[name] for name in task.asks):
            if cut[asked.model] is Form.JPEG:
                raise ConfigurationError(
                    f"--cut {asked.model}=jpeg: task '{task.name}' asks it about parts of images, which are not "
                    "encoded; use u8, f16 or f32"
                )


def _setup(spec: ModelSpec, gallery: str) -> Setup:
    return Setup(
        spec.name, spec.recipe, spec.label_names(), spec.outputs, spec.threshold, Path(gallery) if gallery else None
    )


def _check_asked(by_task: Mapping[str, Task], catalogue: Mapping[str, ModelSpec]) -> None:
    """Raise `ConfigurationError` where a task would ask another one that is not there."""
    for task in by_task.values():
        for asked in task.asks:
            if asked not in by_task:
                models = [spec.name for spec in catalogue.values() if spec.task == asked]
                raise ConfigurationError(
                    f"task '{task.name}' asks task '{asked}', for which no model is linked; add --link "
                    f"{models[0] if models else 'MODEL'}=URL (models of that task: {', '.join(models) or 'none'})"
                )


def _catalogue(path: str) -> dict[str, ModelSpec]:
    return load_catalogue(Path(path) if path else None)


def _model(catalogue: dict[str, ModelSpec], name: str) -> ModelSpec:
    try:
        return catalogue[name]
    except KeyError:
        raise ConfigurationError(f"the models file has no model '{name}'; it has {', '.join(catalogue)}") from None
