"""A figure's steps, carried out one after the other on this machine, and kept: what is finished is not done again.

It is done again where its plan is another one now, or a network of it, or the machine, or its packages: numbers of two
machines on one page would be taken for those of one. Those by other code of this project stay, and are said to be such.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loadgen import atomic
from loadgen.errors import PlanError
from loadgen.experiment import Deployment, carry_out, environment, save
from loadgen.figures import provenance
from loadgen.figures.figure import Figure, Step
from loadgen.figures.recording import forget_others, record
from loadgen.progress import Display
from loadgen.samples import Sample
from loadgen.stored import read_run
from services.errors import ConfigurationError, ServiceError
from services.local import affinity, preflight
from services.local.broker import BrokerSettings
from services.local.deployments import Options, Replicas
from services.local.errors import LocalStackError
from services.local.redis_server import RedisServerSettings
from services.local.stack import Stack
from services.models.catalogue import ModelSpec, load_catalogue

_RECORD = "step.json"
# Of the environment; a kernel's update alone (platform) is no other machine.
_DEPENDS_ON = ("cpu", "cpus", "gpus", "python")
Make = Callable[[str, int], Sequence[Sample]]


class Done(NamedTuple):
    """A step that was carried out (`folder` has its run), or why it was not.

    `by_other_code`: its numbers are of another state of this project than today's.
    """

    step: Step
    folder: Path | None
    reason: str
    by_other_code: bool = False


def conduct(figure: Figure, folder: Path, samples: Make, display: Display) -> list[Done]:
    """All its steps, in order. `folder`: of all figures' runs. Ctrl-C and the errors of a run's own plan go through."""
    done = []
    for number, step in enumerate(figure.steps, 1):
        place = folder / figure.id / step.folder
        what = f"{figure.id}, {number} of {len(figure.steps)}: {step.name}"
        reason = ""
        if _outdated(place, step) or not _record(place)["whole"]:
            reason = lacking(step)
            if not reason:
                display(what, 0, 0)
                reason = _carry_out(figure, step, place, folder / "stack", samples, display)
        if reason and _outdated(place, step):
            done.append(Done(step, None, reason))
        else:  # what another try did not better stays
            done.append(_done(step, place))
    return done


def complete(figure: Figure, folder: Path) -> bool:
    """Whether each of its steps was carried out as it would be now, or cannot be here."""
    return all(not _outdated(folder / figure.id / step.folder, step) or lacking(step) for step in figure.steps)


def kept(figure: Figure, folder: Path) -> bool:
    """Whether anything of it was carried out already, as it would be now."""
    return any(not _outdated(folder / figure.id / step.folder, step) for step in figure.steps)


def done_already(figure: Figure, folder: Path) -> list[Done]:
    """Its steps as they lie there, without carrying out any."""
    done = []
    for step in figure.steps:
        place = folder / figure.id / step.folder
        why = _outdated(place, step)
        done.append(Done(step, None, lacking(step) or why) if why else _done(step, place))
    return done


def _done(step: Step, place: Path) -> Done:
    return Done(step, place, "", _record(place)["code"] != provenance.code())


def _record(place: Path) -> dict[str, Any]:
    """Raises `ValueError` where there is none that is whole."""
    try:
        record: dict[str, Any] = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        return {key: record[key] for key in ("fingerprint", "networks", "code", "whole")}
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{place} has no record of a step: {error!r}") from None


def _outdated(place: Path, step: Step) -> str:
    """Why what lies at `place` are not this step's numbers; empty where they are."""
    try:
        record = _record(place)
        there = read_run(place)[1]["environment"]
    except (PlanError, ValueError, KeyError):
        return "not carried out yet"
    if record["fingerprint"] != step.fingerprint:
        return "carried out by another plan than today's"
    networks = provenance.networks(_models(step))
    other = [model for model, digest in networks.items() if record["networks"].get(model) != digest]
    if other:
        return f"carried out with another {' and '.join(other)} than today's"
    other = _other_machine(there)
    return f"carried out elsewhere: {', '.join(other)} differ" if other else ""


def _other_machine(there: Mapping[str, Any]) -> list[str]:
    """What differs here. A package that one of both environments has not is no matter of the step's: see `needs`."""
    here = environment()
    packages = {
        package: there.get("versions", {}).get(package, version) for package, version in here["versions"].items()
    }
    other = [what for what in _DEPENDS_ON if there.get(what) != here[what]]
    return other + [package for package, version in packages.items() if here["versions"][package] != version]


def lacking(step: Step) -> str:
    """What of its needs is not here, with the remedy; empty where all is."""
    for name in step.needs:
        if name not in _NEEDS:
            raise PlanError(f"step '{step.name}' needs '{name}'; what can be needed is {', '.join(_NEEDS)}")
        reason = _NEEDS[name]()
        if reason:
            return reason
    reason = affinity.lacking(step.inference_cpus)
    if reason:
        return reason
    absent = preflight.absent([*step.transports, *(name for other in step.beside for name in other.transports)])
    if absent:
        return next(iter(absent.values()))
    for model in _models(step):
        if model.onnx is not None and not model.onnx.exists():
            return (
                f"{model.onnx.name} is not there: make figures writes it where torch is, or: make models models-tasks"
            )
    return ""


def _models(step: Step) -> list[ModelSpec]:
    """Raises `PlanError`."""
    try:
        catalogue = load_catalogue(step.models_file)
    except ConfigurationError as error:
        raise PlanError(error.message) from None
    wanted = [*step.models, *(other.model for other in step.beside)]
    unknown = [name for name in wanted if name not in catalogue]
    if unknown:
        raise PlanError(
            f"step '{step.name}': the models file has no {', '.join(unknown)}; it has {', '.join(catalogue)}"
        )
    return [catalogue[name] for name in wanted]


def _torch() -> str:
    return (
        ""
        if importlib.util.find_spec("torch")
        else "torch is not in this environment: run make figures without TORCH=0"
    )


def _cuda() -> str:
    # Before torch, which takes 10 GB to find that out.
    return "" if Path("/proc/driver/nvidia/version").exists() else "this machine has no NVIDIA GPU"


def _tensorrt() -> str:
    return (
        _cuda()
        or _torch()
        or (
            ""
            if importlib.util.find_spec("tensorrt")
            else "TensorRT is not in this environment: pip install 'tensorrt>=10,<11'"
        )
    )


def _dali() -> str:
    # `nvidia` is what NVIDIA's packages share; without any of them there is none to look into.
    there = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    return _cuda() or _torch() or ("" if there else "DALI is not in this environment: pip install '.[dali]'")


_NEEDS: Mapping[str, Callable[[], str]] = {"torch": _torch, "cuda": _cuda, "tensorrt": _tensorrt, "dali": _dali}


def _carry_out(figure: Figure, step: Step, place: Path, stack_folder: Path, samples: Make, display: Display) -> str:
    """Why there are no numbers; empty where there are."""
    plan, models = figure.plan_of(step), _models(step)
    # As they are now: what is edited meanwhile was not measured.
    networks, code, machine = provenance.networks(models), provenance.code(), environment()
    chosen = {size: samples(size, count) for size, count in plan.samples.items()}
    forget_others(models, machine)
    accelerated = [sample for size in chosen.values() for sample in size] if _accelerated(models) else []
    what = f"{figure.id}, {step.name}"

    def see_all(deployments: Mapping[str, Deployment]) -> None:
        urls = {name: deployment.url for name, deployment in deployments.items()}
        record(urls, plan.task, accelerated, plan.timeout_s, what, display)

    try:
        cpus = affinity.shares(step.inference_cpus)
        if accelerated and cpus:
            # With all CPUs: what an accelerator is k times as fast as is the same in every step.
            with _started(step, 0, stack_folder, what, display) as deployments:
                see_all(deployments)
        with _started(step, step.inference_cpus, stack_folder, what, display) as deployments:
            if accelerated:
                see_all(deployments)
            with affinity.confined(cpus and cpus.rest):
                finished = carry_out(plan, deployments, chosen, display)
    except LocalStackError as error:
        return str(error)
    except ServiceError as error:
        return error.message
    except TimeoutError:
        return f"no answer within {plan.timeout_s:g} s while the real network was recorded"
    if finished.run["notes"]:  # the generator failed: nobody interrupted it
        return str(finished.run["notes"][0])
    if finished.run["interrupted"]:
        raise KeyboardInterrupt
    if not any("verdict" in cell for cell in finished.run["cells"]):
        return str(finished.run["cells"][0]["reasons"][0])
    if provenance.networks(models) != networks:
        return "a network was written anew while it was measured"
    finished.run["environment"] = machine  # all of it, also where the generator had a part
    # Cut off between here and the record's end, a run must not stand beside the record of one before it.
    (place / _RECORD).unlink(missing_ok=True)
    save(finished, place)
    about = {
        "fingerprint": step.fingerprint,
        "networks": networks,
        "code": code if code == provenance.code() == provenance.CODE_AT_START else "changed while it was measured",
        # Where one transport could not be started, the others' numbers are kept, and it has another try next time.
        "whole": all("verdict" in cell for cell in finished.run["cells"]),
        "step": dataclasses.asdict(step),
    }
    atomic.write(place / _RECORD, json.dumps(about, indent=1, default=str) + "\n")
    return ""


def _accelerated(models: Sequence[ModelSpec]) -> bool:
    return any(model.acceleration is not None for model in models)


def _options(step: Step) -> Options:
    """Raises `PlanError`."""
    try:
        return Options(
            step.models,
            str(step.models_file or ""),
            engine=step.engine,
            preprocess=step.preprocess,
            engine_of=step.engine_of,
            fused=step.fused,
            link=step.link,
            log_level="WARNING",
            kafka=BrokerSettings(**step.kafka),
            redis=RedisServerSettings(**step.redis),
        )
    except TypeError as error:
        raise PlanError(f"step '{step.name}': what it says of its broker is not known: {error}") from None


@contextlib.contextmanager
def _started(
    step: Step, inference_cpus: int, folder: Path, what: str, display: Display
) -> Iterator[dict[str, Deployment]]:
    """All that a step asks, by the name of its target. `what`: begins the progress lines.

    Raises `LocalStackError`.
    """
    options = _options(step)._replace(inference_cpus=inference_cpus)

    def stack(transports: Sequence[str], own: Options, own_folder: Path) -> Stack:
        def say(line: str) -> None:
            display(f"{what}: {line}", 0, 0)

        return Stack(transports, own, own_folder, say=say, replicas=Replicas(*step.replicas))

    with contextlib.ExitStack() as stacks:
        main = stacks.enter_context(stack(step.transports, options, folder))
        found = {name: _deployment(main, name) for name in main.doors()}
        for name, transport in step.engines.items():
            query = f"?models-file={step.models_file}" if step.models_file else ""
            engine = next(r for r in main.running if r.deployment == transport and r.name.startswith("inference"))
            url = f"grpc://{engine.host_port}/{step.model}{query}"
            found[name] = Deployment(
                url, {"client": os.getpid(), "inference": engine.pid}, [f"http://{engine.metrics}/metrics"]
            )
        for number, other in enumerate(step.beside, 1):
            own = Options((other.model,), options.models_file, log_level="WARNING", inference_cpus=inference_cpus)
            beside = stacks.enter_context(stack(other.transports, own, folder.with_name(f"{folder.name}-{number}")))
            found |= {other.target(name): _deployment(beside, name) for name in beside.doors()}
        yield found


def _deployment(stack: Stack, transport: str) -> Deployment:
    url = f"grpc://{stack.doors()[transport]}"
    return Deployment(url, {"client": os.getpid(), **stack.pids(transport)}, stack.metrics(transport))
