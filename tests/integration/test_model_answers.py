"""Real answers about real photographs, through the whole door in this process; and that the checks catch wrong ones.

The same checks run over every transport in `tests/integration/test_walk.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from PIL import Image

from services.accounting import Timeline
from services.inference.backends.onnxruntime import OnnxRuntimeBackend
from services.messages import Array, Tensors
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess
from tests.answers import LOGITS, check_answer, check_logits, reference_logits
from tests.photographs import CLASSES, encode, jpeg, pixels

NAMES = list(CLASSES)
PUBLIC = ("scores", "labels", "classes")
OUTPUTS = (*PUBLIC, "logits")


class Door(NamedTuple):
    """A door and a client of it; `decode` is how it reads JPEGs."""

    decode: str
    client: triton.InferenceServerClient

    def ask(self, *images: bytes, outputs: tuple[str, ...] = OUTPUTS) -> dict[str, NDArray[np.generic]]:
        tensor = triton.InferInput("image", [len(images)], "BYTES")
        array = np.empty(len(images), dtype=object)
        array[:] = images
        tensor.set_data_from_numpy(array)
        wanted = None if outputs == PUBLIC else [triton.InferRequestedOutput(name) for name in outputs]
        result = self.client.infer("classification", [tensor], outputs=wanted, client_timeout=60)
        return {name: result.as_numpy(name) for name in outputs}


def open_door(*flags: str) -> Iterator[Door]:
    arguments = ["--listen", "127.0.0.1:0", *flags]
    settings = parse(PreprocessSettings, "", arguments, {})
    service = build_preprocess(settings)
    service.start()
    with triton.InferenceServerClient(service.host_port) as client:
        yield Door(settings.decoding.decode, client)
    assert service.stop(5)


@pytest.fixture(scope="module", params=["full", "scaled"])
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    """What `make demo` serves: the default model, fused."""
    yield from open_door("--decode", request.param)


@pytest.fixture(scope="module")
def batching() -> Iterator[Door]:
    """Four requests at once are one batch."""
    yield from open_door("--max-batch", "4", "--max-delay-ms", "300")


def enlarged(name: str) -> bytes:
    """Three times as wide and high: the decoder may shrink it by four."""
    image = Image.fromarray(pixels(name))
    return encode(image.resize((image.width * 3, image.height * 3), Image.Resampling.LANCZOS))


# --- right answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_photograph_is_named_as_the_reference_names_it(door: Door, name: str) -> None:
    check_answer(name, door.ask(jpeg(name)))


def test_four_photographs_in_one_request_are_answered_in_order(door: Door) -> None:
    outputs = door.ask(*(jpeg(name) for name in NAMES), outputs=PUBLIC)
    for row, name in enumerate(NAMES):
        check_answer(name, outputs, row=row)


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
@pytest.mark.parametrize("name", NAMES)
def test_other_formats_are_answered_as_well(door: Door, name: str, format_: str) -> None:
    data = encode(pixels(name), format_, **({"quality": 95} if format_ == "WEBP" else {}))
    check_answer(name, door.ask(data), data=data)


@pytest.mark.parametrize("name", NAMES)
def test_a_large_photograph_is_answered_as_its_decoding_has_it(door: Door, name: str) -> None:
    # Given a photograph from which the decoder takes a quarter of each side, where it may
    data = enlarged(name)
    shrink = 4 if door.decode == "scaled" else 1
    # Then the answer is that of a reference that decodes likewise
    check_answer(name, door.ask(data), data=data, shrink=shrink)


def test_the_check_tells_apart_how_an_image_was_decoded() -> None:
    data = enlarged("china")
    with pytest.raises(AssertionError, match="off by"):
        check_logits(reference_logits(data, 4), reference_logits(data), LOGITS)


def test_a_batch_changes_answers_by_rounding_only(batching: Door) -> None:
    alone = [batching.ask(jpeg(name))["logits"][0] for name in NAMES]
    together = batching.ask(*(jpeg(name) for name in NAMES))
    for row, name in enumerate(NAMES):
        check_answer(name, together, row=row)
        check_logits(together["logits"][row], alone[row], 1e-4)


# --- wrong answers ---------------------------------------------------------------------------------------------------


def refused(name: str, outputs: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether the check refuses it with what the public sees, and with the logits beside."""
    results = []
    for names in (PUBLIC, OUTPUTS):
        try:
            check_answer(name, {key: outputs[key] for key in names})
        except AssertionError:
            results.append(True)
        else:
            results.append(False)
    assert results[0] == results[1], f"{name}: {results}"
    return results[0]


@pytest.mark.parametrize("name", NAMES)
def test_swapped_channels_are_caught(door: Door, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not refused(name, door.ask(jpeg(name)))
    # When the preprocessor forgets that OpenCV has blue first
    monkeypatch.setattr(cv2, "cvtColor", lambda image, code, dst=None: image)
    assert refused(name, door.ask(jpeg(name)))


def change_outputs(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    infer = OnnxRuntimeBackend.infer

    def changed(self: OnnxRuntimeBackend, batch: Array, timeline: Timeline) -> Tensors:
        outputs = infer(self, batch, timeline)
        if change == "zeroed":
            return {name: np.zeros_like(value) for name, value in outputs.items()}
        return {name: np.roll(value, 1, axis=0) for name, value in outputs.items()}

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", changed)


@pytest.mark.parametrize("name", NAMES)
def test_a_zeroed_output_is_caught(door: Door, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change_outputs(monkeypatch, "zeroed")
    assert refused(name, door.ask(jpeg(name)))


def test_the_answer_to_another_image_is_caught(door: Door) -> None:
    answers = {name: door.ask(jpeg(name)) for name in NAMES}
    assert [(a, b) for a in NAMES for b in NAMES if not refused(a, answers[b])] == [(name, name) for name in NAMES]


def test_the_answer_of_another_member_of_the_batch_is_caught(batching: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    change_outputs(monkeypatch, "rolled")
    outputs = batching.ask(*(jpeg(name) for name in NAMES))
    for row, name in enumerate(NAMES):
        with pytest.raises(AssertionError, match="is called"):
            check_answer(name, outputs, row=row)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_word_or_order_or_number_is_caught(door: Door, name: str) -> None:
    right = door.ask(jpeg(name))
    for key, change in {
        "labels": lambda value: np.roll(value, 1, axis=1),
        "scores": lambda value: value * 0.9,
        "classes": lambda value: value[:, ::-1],
        "logits": lambda value: value + np.eye(1, 1000, 7, dtype=np.float32) * 2,
    }.items():
        assert not refused(name, right)
        with pytest.raises(AssertionError):
            check_answer(name, {**right, key: change(right[key])})
