"""Two models behind one door, each in processes of its own: faces are found by MTCNN and identified by another network,

over every transport, and in AI Tax's layout, where the detector is in the door's process and only faces cross.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from services.accounting import Stage, total_ns
from services.local import deployments
from services.local.deployments import Options
from services.local.preflight import absent
from services.local.stack import Stack
from tests import faces
from tests.integration.test_faces import Answer, ask, target
from tests.integration.test_metrics import Scrape
from tests.photographs import encode, jpeg

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(not faces.MTCNN.is_file(), reason="models/mtcnn.onnx is not built: make models"),
    pytest.mark.timeout(240),
]

MODELS = ("mtcnn", "looks")
ABSENT = absent(list(deployments.TRANSPORTS))
TRANSPORTS = [name for name in deployments.TRANSPORTS if name not in ABSENT]
CROSSED = [name for name in TRANSPORTS if deployments.TRANSPORTS[name].url is not None]
BATCH = ("--max-batch", "4", "--max-delay-ms", "20")


class Suites(NamedTuple):
    """`whole`: both models over each transport; `mixed`: the detector in the door, the identifier over it."""

    whole: Stack
    mixed: Stack

    def door(self, layout: str, transport: str) -> str:
        return (self.whole if layout == "whole" else self.mixed).doors()[transport]


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suites]:
    folder = tmp_path_factory.mktemp("pipelines")
    options = Options(MODELS, str(faces.models_file(folder)), engine_of={"looks": BATCH}, log_level="WARNING")
    with Stack(TRANSPORTS, options, folder / "whole") as whole:
        own = options._replace(fused=("mtcnn",), suffix=".mixed")
        running = {kind: broker.bootstrap for kind, broker in whole.brokers.items()}
        with Stack(CROSSED, own, folder / "mixed", kafka=running.get("kafka"), redis=running.get("redis")) as mixed:
            yield Suites(whole, mixed)


@pytest.fixture(scope="module")
def frames() -> Mapping[str, bytes]:
    """The astronaut, a photograph of nobody, and a frame of four heads."""
    return {"one": jpeg("astronaut"), "none": jpeg("coffee"), "four": encode(faces.crowd(2, 2))}


@pytest.fixture(scope="module")
def reference(suites: Suites, frames: Mapping[str, bytes]) -> Mapping[str, Answer]:
    """What a door with both models in its process answers."""
    door = target(suites.door("whole", "fused"))
    answers = {name: ask(door, frame) for name, frame in frames.items()}
    door.close()
    return answers


def test_the_fused_door_finds_who_is_there(reference: Mapping[str, Answer]) -> None:
    assert {name: len(answer.boxes) for name, answer in reference.items()} == {"one": 1, "none": 0, "four": 4}
    assert faces.overlap(reference["one"].boxes[0], faces.ASTRONAUT) > 0.7


@pytest.mark.parametrize("layout", ["whole", "mixed"])
@pytest.mark.parametrize("transport", CROSSED)
def test_every_layout_gives_the_fused_answer_and_its_time_adds_up(
    suites: Suites, frames: Mapping[str, bytes], reference: Mapping[str, Answer], transport: str, layout: str
) -> None:
    door = target(suites.door(layout, transport))
    for name, frame in frames.items():
        answer = ask(door, frame)
        np.testing.assert_array_equal(answer.boxes, reference[name].boxes)
        # How faces fall into batches is a matter of the moment: it changes an embedding by rounding
        np.testing.assert_allclose(answer.embeddings, reference[name].embeddings, atol=1e-6)
        tiles = answer.exchange.tiles
        assert total_ns(tiles) == answer.exchange.done_ns - answer.exchange.due_ns
        # Both networks computed, and those that have processes of their own were reached over a hop, the others not
        computed = [index for index, tile in enumerate(tiles) if tile.stage is Stage.INFER]
        assert len(computed) == (1 if name == "none" else 2)
        reached = [
            any(tile.stage is Stage.ADMISSION and tile.where == "inference" for tile in tiles[begin:end])
            for begin, end in pairwise([0, *computed])
        ]
        assert reached == [layout == "whole", True][: len(computed)]
    door.close()


def batches(stack: Stack, transport: str, model: str) -> tuple[float, float]:
    """How many there were of this model in all of a transport's processes, and of how many images."""
    scrapes = [Scrape(url.removeprefix("http://").partition("/")[0]) for url in stack.metrics(transport)]
    labels = {"queue": "inference", "model": model}
    return (
        sum(scrape.value("beyond_batch_size_count", **labels) for scrape in scrapes),
        sum(scrape.value("beyond_batch_size_sum", **labels) for scrape in scrapes),
    )


@pytest.mark.parametrize("transport", ["fused", "grpc"])
def test_a_models_own_flags_are_its_engines_alone(suites: Suites, frames: Mapping[str, bytes], transport: str) -> None:
    door = target(suites.door("whole", transport))
    before = {model: batches(suites.whole, transport, model) for model in MODELS}
    for _ in range(5):
        ask(door, frames["four"])
    door.close()
    counts = {}
    for model in MODELS:
        after = batches(suites.whole, transport, model)
        counts[model] = tuple(now - then for now, then in zip(after, before[model], strict=True))
    assert counts["mtcnn"] == (5, 5)
    assert counts["looks"][1] == 20
    assert counts["looks"][0] < 20  # the four faces of a frame in batches of up to four


def test_its_processes_are_told_apart(suites: Suites) -> None:
    assert list(suites.whole.pids("grpc")) == ["inference-mtcnn", "inference-looks", "preprocess"]
    assert list(suites.mixed.pids("grpc")) == ["inference-looks", "preprocess"]
