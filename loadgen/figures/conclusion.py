"""What a figure says, as a page and a file have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Check(NamedTuple):
    """Something that has to hold; `held` None: too little was measured to say."""

    what: str
    held: bool | None


class Conclusion(NamedTuple):
    """`says`: ours, in a sentence or two, with intervals. `head` and `rows`: the table. `pictures`: name -> SVG.

    `data`: what the pictures are drawn from, as JSON has it.
    """

    says: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    pictures: Mapping[str, str]
    data: Mapping[str, object]
    checks: Sequence[Check] = ()


def every(held: Iterable[bool | None]) -> bool | None:
    """Whether all hold; None where none fails, but of some too little was measured."""
    said = list(held)
    return False if False in said else None if None in said else True


def nothing(why: str) -> Conclusion:
    """Where nothing could be measured."""
    return Conclusion(why, (), (), {}, {})
