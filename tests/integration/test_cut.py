"""What crosses the hop, between a real door and a real inference service: answers, ledgers, bytes, refusals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from loadgen.calibration import calibrate
from loadgen.cuts import HOP
from loadgen.target import Exchange, OipTarget, image_tensor
from services.accounting import Fact, Stage, monotonic_ns
from services.cut import Form
from services.errors import ConfigurationError
from services.local.deployments import FORMS, TABLE
from services.settings import InferenceSettings, PreprocessSettings, parse
from services.wiring import build_inference, build_preprocess
from tests.answers import check_answer
from tests.photographs import CLASSES, jpeg
from tests.unit.test_image_header import png_claiming

WAIT = 20.0
OUTPUTS = ("scores", "labels", "classes", "logits")
PREPARING = {Stage.DECODE, Stage.RESIZE, Stage.NORMALIZE}
# Where each step is done.
PLACES = {
    Form.F32: {Stage.DECODE: "preprocess", Stage.RESIZE: "preprocess", Stage.NORMALIZE: {"preprocess"}},
    Form.JPEG: {Stage.DECODE: "inference", Stage.RESIZE: "inference", Stage.NORMALIZE: {"inference"}},
    Form.U8: {Stage.DECODE: "preprocess", Stage.RESIZE: "preprocess", Stage.NORMALIZE: {"preprocess", "inference"}},
    Form.F16: {Stage.DECODE: "preprocess", Stage.RESIZE: "preprocess", Stage.NORMALIZE: {"preprocess", "inference"}},
}


@contextlib.contextmanager
def door(inference: str, *flags: str) -> Iterator[OipTarget]:
    arguments = ["--listen", "127.0.0.1:0", "--link", f"efficientnet-lite0=grpc://{inference}", *flags]
    service = build_preprocess(parse(PreprocessSettings, "", arguments, {}))
    service.start()
    target = OipTarget(service.host_port, "classification", WAIT, outputs=OUTPUTS)
    try:
        yield target
    finally:
        target.close()
        service.stop(5)


@pytest.fixture(scope="module")
def inference() -> Iterator[str]:
    """One service, of no particular form."""
    service = build_inference(parse(InferenceSettings, "", ["--listen", "127.0.0.1:0"], {}))
    service.start()
    yield service.host_port
    service.stop(5)


@pytest.fixture(scope="module", params=list(Form), ids=lambda form: form.value)
def asked(request: pytest.FixtureRequest, inference: str) -> Iterator[tuple[Form, OipTarget]]:
    form: Form = request.param
    with door(inference, "--cut", form.value) as target:
        yield form, target


def ask(target: OipTarget, data: bytes) -> Exchange:
    return target.send(image_tensor(data), "id", monotonic_ns()).result(WAIT)


def test_every_photograph_gets_its_answer(asked: tuple[Form, OipTarget]) -> None:
    for name in CLASSES:
        exchange = ask(asked[1], jpeg(name))
        assert exchange.error is None, exchange.message
        check_answer(name, exchange.outputs)


def test_answers_are_those_of_the_models_own_input(asked: tuple[Form, OipTarget], inference: str) -> None:
    with door(inference) as plain:
        for name in CLASSES:
            mine, its = ask(asked[1], jpeg(name)).outputs, ask(plain, jpeg(name)).outputs
            # This model's mean and deviation are whole, and a power of two: half precision loses nothing of it
            np.testing.assert_array_equal(mine["logits"], its["logits"])


def test_the_ledger_adds_up_and_says_who_prepared(asked: tuple[Form, OipTarget]) -> None:
    form, target = asked
    exchange = ask(target, jpeg("coffee"))
    assert sum(tile.duration_ns for tile in exchange.tiles) == exchange.total_ns
    for stage in PREPARING:
        places = {tile.where for tile in exchange.tiles if tile.stage is stage}
        expected = PLACES[form][stage]
        assert places == (expected if isinstance(expected, set) else {expected}), stage


def test_the_bytes_are_those_of_the_form(asked: tuple[Form, OipTarget]) -> None:
    form, target = asked
    data = jpeg("coffee")
    sizes = {Form.JPEG: len(data), Form.U8: 150_528, Form.F16: 301_056, Form.F32: 602_112}
    facts = [fact for tile in ask(target, data).tiles if tile.where == HOP for fact in tile.facts]
    (crossed,) = (int(value) for fact, value in facts if fact is Fact.REQUEST_BYTES)
    assert sizes[form] < crossed < sizes[form] + 200


def test_what_is_no_image_is_refused_with_its_cause_and_the_next_one_is_unharmed(asked: tuple[Form, OipTarget]) -> None:
    for data, words in ((b"text", "no image"), (jpeg("coffee")[:5000], "cut off"), (png_claiming(30000, 30000), "900")):
        exchange = ask(asked[1], data)
        assert exchange.error is not None
        assert words in exchange.message, exchange.message
        assert ask(asked[1], jpeg("coffee")).error is None


def test_the_floor_of_the_link_is_of_what_crosses(asked: tuple[Form, OipTarget]) -> None:
    floors = calibrate(asked[1], [image_tensor(jpeg("coffee"))], 8, 0.01, WAIT)
    assert HOP in {floor.hop for floor in floors}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--link", "efficientnet-lite0=fused:", "--cut", "u8"], "nothing crosses a fused link"),
        (["--link", "efficientnet-lite0=grpc://127.0.0.1:1", "--cut", "gif"], "use one of jpeg, u8, f16, f32"),
        (["--link", "efficientnet-lite0=grpc://127.0.0.1:1", "--cut", "resnet=u8"], "no link goes to a model"),
    ],
)
def test_a_form_that_cannot_be_is_refused_at_the_start(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        build_preprocess(parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0", *flags], {}))


@pytest.mark.parametrize("cut", ["mtcnn=jpeg", "emulated-identifier=jpeg"])
def test_faces_and_their_crops_do_not_cross_encoded(cut: str) -> None:
    flags = ["--link", "mtcnn=grpc://127.0.0.1:1", "--link", "emulated-identifier=grpc://127.0.0.1:1", "--cut", cut]
    with pytest.raises(ConfigurationError, match="use u8, f16 or f32"):
        build_preprocess(parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0", *flags], {}))


def test_every_transport_with_a_hop_can_be_started_with_every_form() -> None:
    assert {form.value for form in Form} - {"f32"} == set(FORMS)
    hops = [name for name, row in TABLE.items() if row.url is not None and "+" not in name]
    assert {f"{name}+{form}" for name in hops for form in FORMS} <= set(TABLE)
