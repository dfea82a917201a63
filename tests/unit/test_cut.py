"""In which form an image crosses: what a tensor says of itself, what a setting says, and what is made of it behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from services.accounting import Stage, Tile, Timeline, monotonic_ns, total_ns
from services.cut import SIZE, Form, crossing, form_of, forms
from services.errors import ConfigurationError, DeadlineExceeded, Internal, Overloaded, UndecodableImage
from services.inference.intake import Intake
from services.messages import Array, Image, Outcome, Recipe, Work
from services.preprocess.normalize import normalize
from services.preprocess.opencv import OpenCvPreprocessor, load

MS = 1_000_000
# Means and deviations that no power of two divides, so that half precision rounds.
RECIPE = Recipe(32, 36, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
WAIT = 10.0


def photograph(width: int = 60, height: int = 40) -> bytes:
    import cv2

    pixels = np.random.default_rng(1).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    ok, data = cv2.imencode(".png", cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))
    assert ok
    return data.tobytes()


def encoded(data: bytes) -> Array:
    tensor = np.empty(1, dtype=object)
    tensor[0] = data
    return tensor


def prepared(data: bytes, recipe: Recipe = RECIPE) -> Array:
    """As the door does it."""
    opencv = load(10**8, scaled=True)
    timeline = Timeline("test")
    return opencv.prepare(opencv.decode(data, timeline, recipe.crop), recipe, timeline)


def crossed(data: bytes, form: Form) -> Array:
    recipe = crossing(RECIPE, form)
    return encoded(data) if recipe is None else prepared(data, recipe)


class Engine:
    """Keeps what it is asked, and answers with one tile."""

    def __init__(self) -> None:
        self.asked: list[Work] = []
        self.error: Exception | None = None

    def submit(self, work: Work) -> Future[Outcome]:
        self.asked.append(work)
        done: Future[Outcome] = Future()
        if self.error is not None:
            done.set_exception(self.error)
        else:
            done.set_result(Outcome({"y": np.ones((1, 2), np.float32)}, (Tile(Stage.INFER, 5, 5, "inference"),)))
        return done


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def intake(engine: Engine) -> Iterator[Intake]:
    intake = Intake(engine.submit, RECIPE, load(10**8, scaled=True), instances=2, capacity=4)
    yield intake
    intake.close()


def work(tensor: Array, seconds: float = WAIT) -> Work:
    return Work("id", "model", tensor, monotonic_ns() + int(seconds * 1e9), {"traceparent": b"00"})


@pytest.mark.parametrize("form", list(Form))
def test_a_tensor_says_in_which_form_it_is(form: Form) -> None:
    assert form_of(crossed(photograph(), form), RECIPE) is form


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((1, 32, 32, 4), np.uint8),
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 3, 31, 32), np.float16),
        np.zeros((1, 3, 32, 32), np.float64),
        np.array([b"a", b"b"], dtype=object),
        np.array([[b"a"]], dtype=object),
    ],
)
def test_what_is_none_of_them_is_left_to_the_engine_to_refuse(intake: Intake, engine: Engine, tensor: Array) -> None:
    assert form_of(tensor, RECIPE) is None
    intake.submit(work(tensor)).result(WAIT)
    assert engine.asked[0].tensor is tensor


@pytest.mark.parametrize(("form", "size"), [(Form.U8, 3072), (Form.F16, 6144), (Form.F32, 12288)])
def test_each_form_has_its_size(form: Form, size: int) -> None:
    assert crossed(photograph(), form).nbytes == size


@pytest.mark.parametrize("form", list(Form))
def test_the_model_gets_its_own_input_whatever_crossed(intake: Intake, engine: Engine, form: Form) -> None:
    # Given what the door would have made of the image
    data = photograph()
    direct = prepared(data)
    # When it crosses in a form
    outcome = intake.submit(work(crossed(data, form))).result(WAIT)
    # Then the model is asked with the same tensor, but for what half precision rounds
    (asked,) = engine.asked
    assert asked.tensor.dtype == np.float32
    assert (asked.id, asked.model, asked.headers) == ("id", "model", {"traceparent": b"00"})
    if form is Form.F16:
        assert 0 < np.abs(asked.tensor - direct).max() < 2.0**-10 * np.abs(direct).max()
    else:
        np.testing.assert_array_equal(asked.tensor, direct)
    # And the answer says how large an image was that nobody else has decoded
    assert outcome.outputs["y"].shape == (1, 2)
    if form is Form.JPEG:
        assert outcome.outputs[SIZE].tolist() == [[60, 40]]
    else:
        assert SIZE not in outcome.outputs


LEDGERS = {
    Form.JPEG: ["preprocess_queue", "decode", "resize", "normalize", "infer", "dispatch"],
    Form.U8: ["preprocess_queue", "normalize", "infer", "dispatch"],
    Form.F16: ["preprocess_queue", "normalize", "infer", "dispatch"],
    Form.F32: ["infer"],
}


@pytest.mark.parametrize("form", list(Form))
def test_the_ledger_says_what_was_done_on_this_side(intake: Intake, form: Form) -> None:
    begin = monotonic_ns()
    outcome = intake.submit(work(crossed(photograph(), form))).result(WAIT)
    took = monotonic_ns() - begin
    stages = [tile.stage.value for tile in outcome.tiles]
    assert sorted(stages) == sorted(LEDGERS[form])
    assert {tile.where for tile in outcome.tiles} == {"inference"}
    assert all(tile.duration_ns >= 0 for tile in outcome.tiles)
    assert total_ns(outcome.tiles) <= took


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, fit="stretch"), replace(RECIPE, layout="HWC")])
def test_pixels_that_crossed_are_normalized_as_at_the_door(recipe: Recipe) -> None:
    pixels = prepared(photograph(), replace(recipe, dtype="uint8", layout="HWC"))
    np.testing.assert_array_equal(normalize(pixels[0], recipe), prepared(photograph(), recipe))


def test_the_margin_of_a_letterbox_is_the_mean_up_to_half_a_level() -> None:
    recipe = replace(RECIPE, fit="letterbox")
    pixels = prepared(photograph(), replace(recipe, dtype="uint8", layout="HWC"))
    apart = np.abs(normalize(pixels[0], recipe) - prepared(photograph(), recipe))
    assert 0 < apart.max() <= 0.5 / min(recipe.std)
    assert apart[:, :, :21].max() == 0, "the image itself is exact"


def test_a_bad_image_is_refused_and_the_next_one_is_unharmed(intake: Intake, engine: Engine) -> None:
    with pytest.raises(UndecodableImage):
        intake.submit(work(encoded(b"text"))).result(WAIT)
    assert engine.asked == []
    intake.submit(work(encoded(photograph()))).result(WAIT)


def test_what_the_engine_refuses_is_refused(intake: Intake, engine: Engine) -> None:
    engine.error = Internal("the device is gone")
    with pytest.raises(Internal, match="the device is gone"):
        intake.submit(work(crossed(photograph(), Form.U8))).result(WAIT)


def test_late_work_costs_nothing(intake: Intake, engine: Engine) -> None:
    with pytest.raises(DeadlineExceeded):
        intake.submit(work(encoded(photograph()), seconds=-1)).result(WAIT)
    assert engine.asked == []


def test_more_than_may_wait_is_refused_at_once(engine: Engine) -> None:
    class Slow(OpenCvPreprocessor):
        def decode(self, data: bytes | memoryview, timeline: Timeline, shorter: int = 0) -> Image:
            entered.release()
            assert go.wait(WAIT)
            return super().decode(data, timeline, shorter)

    go, entered = threading.Event(), threading.Semaphore(0)
    intake = Intake(engine.submit, RECIPE, Slow(10**8, scaled=True), instances=1, capacity=2)
    try:
        first = intake.submit(work(encoded(photograph())))
        assert entered.acquire(timeout=WAIT)
        waiting = [intake.submit(work(encoded(photograph()))) for _ in range(2)]
        with pytest.raises(Overloaded):
            intake.submit(work(encoded(photograph()))).result(0)
        go.set()
        for future in (first, *waiting):
            future.result(WAIT)
    finally:
        go.set()
        intake.close()


# --- the setting -----------------------------------------------------------------------------------------------------


def test_a_form_is_for_all_models_or_for_one() -> None:
    models = ["a", "b"]
    assert forms([], models) == {"a": Form.F32, "b": Form.F32}
    assert forms(["u8"], models) == {"a": Form.U8, "b": Form.U8}
    assert forms(["b=jpeg", "u8"], models) == {"a": Form.U8, "b": Form.JPEG}, "what is said of one goes before"


@pytest.mark.parametrize(
    ("entry", "words"), [("png", "use one of jpeg, u8, f16, f32"), ("a=", "no form ''"), ("c=u8", "there is a, b")]
)
def test_a_wrong_setting_says_what_is_right(entry: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        forms([entry], ["a", "b"])
