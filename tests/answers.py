"""Is this the right answer? The checks that every test of real answers uses, and the reference behind them.

The reference shares no code with the suite: Pillow decodes, exact area averaging in numpy resizes (in floating point),
ONNX Runtime is called directly. That the ONNX file itself is right is shown against torch's network, in
`tests/integration/test_torch_equals_onnx.py`. That the checks can fail: `tests/integration/test_model_answers.py`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from tests.photographs import CLASSES, jpeg

MODEL = Path(__file__).parent.parent / "models" / "efficientnet-lite0.onnx"
# The words for the classes of `photographs.CLASSES`, from ImageNet's synsets.
WORDS = {967: "espresso", 985: "daisy", 698: "palace", 281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}

# How far the suite may be from the reference. It rounds to 8 bits after resizing, the reference does not: on the four
# photographs that makes at most 0.014 in probability and 0.027 of the logits' range. Swapped channels make at least
# 0.041 and 0.15 (measured).
PROBABILITY = 0.025
LOGITS = 0.04  # of the range of the logits

Logits = NDArray[np.float32]


@cache
def _session() -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])


def averaging(source: int, target: int) -> NDArray[np.float64]:
    """[target, source]: each row averages the source's pixels by how much of them the target's pixel covers."""
    edges = np.arange(target + 1) * (source / target)
    begin, end = edges[:-1, None], edges[1:, None]
    pixel = np.arange(source)[None, :]
    covered = np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, None)
    return covered / covered.sum(axis=1, keepdims=True)


def reference_tensor(data: bytes, shrink: int = 1) -> NDArray[np.float32]:
    """float32 [1, 3, 224, 224]: shorter side to 256, the centre, (x - 127) / 128, as the network's authors do it.

    `shrink`: 2, 4 or 8 lets the JPEG decoder shrink, as `--decode scaled` does with a photograph that is large enough.
    """
    image = Image.open(io.BytesIO(data))
    if shrink > 1:
        whole = image.size
        image.draft("RGB", (whole[0] // shrink, whole[1] // shrink))
        assert image.size == (-(-whole[0] // shrink), -(-whole[1] // shrink))
    rgb = np.asarray(image.convert("RGB"), np.float64)
    height, width = rgb.shape[:2]
    scale = 256 / min(height, width)
    rows, columns = averaging(height, round(height * scale)), averaging(width, round(width * scale))
    small = np.einsum("yh,hwc,xw->cyx", rows, rgb, columns, optimize=True)
    top, left = (small.shape[1] - 224) // 2, (small.shape[2] - 224) // 2
    centre = small[None, :, top : top + 224, left : left + 224]
    return ((centre - 127) / 128).astype(np.float32)


@cache
def reference_logits(data: bytes, shrink: int = 1) -> Logits:
    """float32 [1000]; computed once per image and session."""
    logits: Logits = _session().run(["logits"], {"images": reference_tensor(data, shrink)})[0][0]
    logits.flags.writeable = False
    return logits


def probabilities(logits: Logits) -> NDArray[np.float64]:
    """Softmax."""
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    return powers / powers.sum()


def check_answer(
    name: str, outputs: Mapping[str, NDArray[Any]], *, row: int = 0, data: bytes | None = None, shrink: int = 1
) -> None:
    """Raise `AssertionError` unless `outputs` is the door's answer for the photograph `name`.

    `outputs`: `scores`, `labels` and `classes` [n, 5], and `logits` [n, 1000] where they were asked for; `row`: which
    of the n. `data`: the encoded image, if it isn't `photographs.jpeg(name)`; `shrink`: see `reference_tensor`.
    """
    scores, classes = outputs["scores"][row], outputs["classes"][row]
    words = [bytes(label).decode() for label in outputs["labels"][row]]
    reference = reference_logits(jpeg(name) if data is None else data, shrink)
    expected = probabilities(reference)
    # The right class, in the right word, as the reference has it
    assert classes[0] in CLASSES[name], f"{name} is called {words[0]} ({classes[0]})"
    assert classes[0] == reference.argmax(), f"{name} is class {classes[0]}, the reference has {reference.argmax()}"
    assert words[0] == WORDS[int(classes[0])], f"class {classes[0]} is called '{words[0]}'"
    # Five different classes, likeliest first
    assert scores.shape == classes.shape == (5,)
    assert len(set(classes.tolist())) == len(set(words)) == 5
    assert (np.diff(scores) <= 0).all(), f"{name}: scores {scores} are not in order"
    # As probable as the reference says
    off = float(np.abs(scores - expected[classes]).max())
    assert off <= PROBABILITY, f"{name}: scores {scores}, the reference has {expected[classes]}"
    if "logits" in outputs:
        logits = outputs["logits"][row]
        check_logits(logits, reference, LOGITS)
        np.testing.assert_allclose(scores, probabilities(logits)[classes], rtol=1e-5)


def check_logits(logits: NDArray[Any], reference: NDArray[Any], share: float) -> None:
    """Raise `AssertionError` unless each logit is within `share` of the reference's range."""
    assert logits.shape == reference.shape
    assert np.isfinite(logits).all()
    off = float(np.abs(logits - reference).max() / np.ptp(reference))
    assert off <= share, f"logits are off by {off:.2g} of their range; {share:.2g} is allowed"
