"""An inference service, asked without a door: the same answers, and a ledger without preprocessing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loadgen.engine_target import EngineTarget
from loadgen.errors import PlanError
from loadgen.samples import photographs
from loadgen.target import OipTarget
from loadgen.targets import open_target
from services.accounting import GROUP_OF, Group, monotonic_ns
from services.local.deployments import Options
from services.local.stack import Stack

MODEL = "efficientnet-lite0"
WAIT = 30.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(["grpc"], Options((MODEL,)), tmp_path_factory.mktemp("stack")) as running:
        yield running


def engine(stack: Stack) -> str:
    return next(running.host_port for running in stack.running if running.name == "inference")


def test_it_answers_what_a_door_answers_and_its_ledger_has_no_preprocessing(stack: Stack) -> None:
    # Given an inference service with a door before it, and photographs
    images = [photo.data for photo in photographs()]
    door = OipTarget(stack.doors()["grpc"], "classification", WAIT, outputs=("logits",))
    target = open_target(f"grpc://{engine(stack)}/{MODEL}", "", WAIT)
    try:
        # When both are asked
        asked = zip(door.tensors(images), target.tensors(images), strict=True)
        pairs = [(door.send(a, "d", monotonic_ns()), target.send(b, "e", monotonic_ns())) for a, b in asked]
        for through, direct in ((a.result(WAIT), b.result(WAIT)) for a, b in pairs):
            # Then the answers are the same, and the parts of what was asked directly are its total, without decoding
            assert direct.error is None, direct.message
            np.testing.assert_array_equal(direct.outputs["logits"], through.outputs["logits"])
            assert sum(tile.duration_ns for tile in direct.tiles) == direct.total_ns
            groups = {GROUP_OF[tile.stage] for tile in direct.tiles}
            assert Group.INFERENCE in groups
            assert Group.PREPROCESSING not in groups
            assert Group.PREPROCESSING in {GROUP_OF[tile.stage] for tile in through.tiles}
        # And a probe computes nothing
        probe = target.send(target.tensors(images[:1])[0], "p", monotonic_ns(), probe=True).result(WAIT)
        assert Group.INFERENCE not in {GROUP_OF[tile.stage] for tile in probe.tiles}
        assert not target.emulated()
    finally:
        door.close()
        target.close()


def test_what_goes_wrong_comes_back_as_an_error_of_the_exchange(stack: Stack) -> None:
    # Given an inference service
    target = open_target(f"grpc://{engine(stack)}/{MODEL}", "", WAIT)
    try:
        # When a tensor of another shape is sent
        exchange = target.send(np.zeros((1, 3, 8, 8), np.float32), "x", monotonic_ns()).result(WAIT)
    finally:
        target.close()
    # Then it is refused by name, and all of its time is accounted for
    assert exchange.error == "invalid_input"
    assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns


def test_a_model_that_nobody_knows_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the models file has no 'nobody'; it has efficientnet-lite0"):
        open_target("grpc://127.0.0.1:1/nobody", "", WAIT)
    with pytest.raises(PlanError, match="cannot be read"):
        EngineTarget("127.0.0.1:1", MODEL, WAIT, models_file=tmp_path / "none.toml")
