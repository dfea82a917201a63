"""What `loadgen cuts` says of the forms: of made exchanges, whose times, bytes and answers are known."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from loadgen.cuts import OWN, Asked, _summary, picture, table
from tests.exchanges import walk

IMAGES, ROUNDS = 20, 2


def asked(infer_ms: float, size: int, wrong: frozenset[int] = frozenset()) -> list[Asked]:
    """Every image in every round; the class of those in `wrong`, by their number of request, is another one."""
    rows = []
    for n in range(IMAGES * ROUNDS):
        top = 7 if n in wrong else n % 3
        logits = np.array([0.0, 4.0, 8.0], np.float32) + (0.4 if n in wrong else 0.0)
        exchange = walk(n, infer=infer_ms + (n % 5) / 10)._replace(id=f"photo-{n % IMAGES}")
        rows.append(Asked(exchange, size, top, logits))
    return rows


def test_agreement_is_counted_by_image_not_by_request() -> None:
    # Given a form that answers one image otherwise in one round, and another one in both
    own, other = asked(5.0, 600), asked(5.0, 150, frozenset({3, 11, 11 + IMAGES}))
    # When it is compared
    found = _summary("u8", other, own)["top1_agreement"]
    # Then two of twenty images disagree, with the exact interval of 18 in 20
    assert (found["images"], found["same"], found["share"]) == (20, 18, 0.9)
    assert found["low"] == pytest.approx(0.6830, abs=1e-4)
    assert found["high"] == pytest.approx(0.9877, abs=1e-4)


def test_times_are_compared_image_by_image() -> None:
    # Given a form that takes 2 ms longer for every image, though images differ among themselves
    own, other = asked(5.0, 600), asked(7.0, 150)
    summary = _summary("jpeg", other, own)
    assert summary["slower_ms"]["mean"] == pytest.approx(2.0, abs=1e-6)
    assert summary["slower_ms"]["low"] == pytest.approx(2.0, abs=1e-3)
    assert summary["groups_ms"]["inference"] == pytest.approx(7.2, abs=0.01)
    assert summary["hop_bytes"] == 150


def test_logits_that_are_off_are_said_as_a_part_of_their_range() -> None:
    own, other = asked(5.0, 600), asked(5.0, 150, frozenset({3}))
    assert _summary("u8", other, own)["most_of_logit_range"] == pytest.approx(0.05)


def test_the_table_and_the_picture_have_every_form() -> None:
    own = asked(5.0, 602_112)
    forms = [_summary(OWN, own, own), _summary("u8", asked(4.0, 150_528, frozenset({3})), own)]
    result = {"transport": "grpc", "images": IMAGES, "rounds": ROUNDS, "forms": forms}
    # Then people read the same as machines do
    text = table(json.loads(json.dumps(result, allow_nan=False)))
    lines = {cells[1].strip(): [cell.strip() for cell in cells[2:4]] for cells in map(_cells, text.splitlines()[2:])}
    assert lines["bytes over the hop"] == ["602,112", "150,528"]
    assert lines["same class as f32, images [95 %]"] == ["-", "19 of 20 [75.1%, 99.9%]"]
    assert lines["slower than f32, ms [95 %]"][1].startswith("-1.00")
    svg = ElementTree.fromstring(picture(result))  # noqa: S314 # ours
    words = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"f32", "u8", "inference", "serialization", "mean ms"} <= words


def _cells(line: str) -> list[str]:
    return line.split("|")
