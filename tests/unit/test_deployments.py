"""What a deployment on this machine is made of: which processes, with which flags and links."""

from __future__ import annotations

import pytest

from services.local.deployments import TABLE, Options, Ports, engine_flags, frames
from services.local.errors import LocalStackError
from services.local.stack import Stack
from services.settings import PreprocessSettings, parse

BOTH = ("mtcnn", "looks")
DOORS = [Ports(1, 2)]


def built(transport: str, options: Options, replicas: int = 1) -> dict[str, list[str]]:
    """The flags of each process, after those of its addresses."""
    deployment = TABLE[transport]
    engines = {
        model: [Ports(100 * (i + 1) + 2 * r, 100 * (i + 1) + 2 * r + 1) for r in range(replicas)]
        for i, model in enumerate(deployment.remote(options))
    }
    specs = deployment.build(options, DOORS, engines, "127.0.0.1:9092,127.0.0.1:9093")
    assert [spec.door for spec in specs] == [False] * (len(specs) - 1) + [True]  # the door is last
    return {spec.name: list(spec.command[7:]) for spec in specs}


def values(flags: list[str], flag: str) -> list[str]:
    return [flags[i + 1] for i, word in enumerate(flags) if word == flag]


def test_one_model_has_one_engine_of_the_services_own_name() -> None:
    assert list(built("grpc", Options(("emulated",)))) == ["inference", "preprocess"]
    assert list(built("grpc", Options(("emulated",)), 2)) == ["inference", "inference-2", "preprocess"]


def test_each_model_has_engines_of_its_own_and_the_door_a_link_to_each() -> None:
    specs = built("grpc", Options(BOTH), 2)
    assert list(specs) == [
        *("inference-mtcnn", "inference-mtcnn-2", "inference-looks", "inference-looks-2"),
        "preprocess",
    ]
    assert values(specs["inference-looks-2"], "--model") == ["looks"]
    assert values(specs["preprocess"], "--link") == [
        "mtcnn=grpc://127.0.0.1:100,127.0.0.1:102",
        "looks=grpc://127.0.0.1:200,127.0.0.1:202",
    ]


@pytest.mark.parametrize("transport", ["kafka", "kafka-python", "redis"])
def test_over_a_broker_each_model_has_a_topic_that_both_ends_name_alike(transport: str) -> None:
    options = Options(BOTH, link={"kafka": "acks=1&linger_ms=5", "redis": "backlog=9"}, suffix=".b")
    specs = built(transport, options)
    urls = [link.partition("=")[2] for link in values(specs["preprocess"], "--link")]
    assert urls == values(specs["inference-mtcnn"], "--consume") + values(specs["inference-looks"], "--consume")
    assert len(set(urls)) == 2
    query = "?backlog=9" if transport == "redis" else "?acks=1&linger_ms=5"
    assert all(url.endswith(f".b{query}") for url in urls)


def test_a_fused_model_is_in_the_door_and_only_the_other_one_crosses() -> None:
    options = Options(BOTH, engine=("--threads", "1"), fused=("mtcnn",))
    specs = built("kafka", options)
    assert list(specs) == ["inference-looks", "preprocess"]
    links = values(specs["preprocess"], "--link")
    assert links[0] == "mtcnn=fused:"
    assert links[1].startswith("looks=kafka://")
    # And whoever holds an engine has the engines' flags
    assert values(specs["preprocess"], "--threads") == values(specs["inference-looks"], "--threads") == ["1"]
    # But a door without one does not
    assert values(built("kafka", Options(BOTH, engine=("--threads", "1")))["preprocess"], "--threads") == []


def test_the_flags_of_one_models_engine_are_its_own_wherever_it_is() -> None:
    options = Options(BOTH, engine=("--max-batch", "2"), engine_of={"looks": ("--max-batch", "32", "--max-delay-ms=2")})
    apart = built("grpc", options)
    # The last one counts
    assert values(apart["inference-looks"], "--max-batch") == ["2", "32"]
    assert values(apart["inference-mtcnn"], "--max-batch") == ["2"]
    fused = built("fused", options)["preprocess"]
    assert values(fused, "--link") == ["mtcnn=fused:", "looks=fused:?max_batch=32&max_delay_ms=2"]
    assert values(fused, "--max-batch") == ["2"]
    # As the door reads them
    assert parse(PreprocessSettings, "", fused, {}).engine.max_batch == 2


def test_a_form_is_of_the_models_that_cross() -> None:
    door = built("kafka+u8", Options(BOTH, fused=("mtcnn",)))["preprocess"]
    assert values(door, "--cut") == ["looks=u8"]
    assert values(built("kafka+u8", Options(BOTH))["preprocess"], "--cut") == ["mtcnn=u8", "looks=u8"]
    assert values(built("kafka", Options(BOTH))["preprocess"], "--cut") == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(()), "serves one model or several"),
        (Options(("a", "a")), "serves one model or several different ones"),
        (Options(BOTH, fused=("it",)), "fused: it; the models are mtcnn, looks"),
        (Options(BOTH, engine_of={"it": ()}), "with flags of its own: it; the models are mtcnn, looks"),
        (Options(BOTH, fused=BOTH), "nothing would cross grpc"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_starts(options: Options, says: str) -> None:
    with pytest.raises(LocalStackError, match=says):
        Stack(["fused", "grpc"], options)


@pytest.mark.parametrize("flags", [("--max-batch",), ("8", "--max-batch"), ("--max-batch", "8", "9")])
def test_a_fused_models_flags_that_are_none_are_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(LocalStackError, match="not --NAME VALUE"):
        built("fused", Options(BOTH, engine_of={"looks": flags}))


def test_a_command_lines_engine_flags_are_for_all_or_for_one_model() -> None:
    said = ["--threads 1", "looks=--max-batch 8 --max-delay-ms 2", "--instances=2", "looks=--threads 2"]
    every, own = engine_flags(said)
    assert every == ("--threads", "1", "--instances=2")
    assert own == {"looks": ("--max-batch", "8", "--max-delay-ms", "2", "--threads", "2")}


@pytest.mark.parametrize(("client", "scheme"), [("kafka", "kafka"), ("kafka-python", "kafka+python")])
def test_doors_take_frames_from_topics_of_their_own_and_engines_do_not(client: str, scheme: str) -> None:
    options = Options(("emulated",), consume=client, suffix=".b")
    options.check()
    url = frames(options, "grpc+f16", "127.0.0.1:9092")
    assert url == f"{scheme}://127.0.0.1:9092/images.grpc.f16.b?results=results.grpc.f16.b"
    specs = TABLE["grpc"].build(options, DOORS, {"emulated": [Ports(3, 4)]}, "", url)
    assert values(list(specs[-1].command), "--consume") == [url]
    assert values(list(specs[0].command), "--consume") == []
    assert frames(Options(("emulated",)), "grpc", "127.0.0.1:9092") == ""


def test_frames_come_from_kafka_and_from_nowhere_else() -> None:
    with pytest.raises(LocalStackError, match="frames are not taken from 'redis'; use kafka or kafka-python"):
        Options(("emulated",), consume="redis").check()
