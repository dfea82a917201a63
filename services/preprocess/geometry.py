"""Which part of an image a recipe takes, and where of it the result is: integers, the same on every device."""

from __future__ import annotations

from typing import NamedTuple

from services.messages import Recipe

# A panorama is cut to this ratio before it is resized: 30000 x 1 pixels would become 7,680,000 x 256.
MAX_ASPECT = 4


class Window(NamedTuple):
    """The source from (`top`, `left`) of `height` x `width` is resized to `target` (width, height); of that the
    recipe's size from (`cut_top`, `cut_left`) is taken.
    """

    top: int
    left: int
    height: int
    width: int
    target: tuple[int, int]
    cut_top: int
    cut_left: int


def centre(height: int, width: int, recipe: Recipe) -> Window:
    """The shorter side becomes `recipe.crop`; the middle is taken."""
    longest = MAX_ASPECT * min(height, width)
    rows, columns = min(height, longest), min(width, longest)
    scale = recipe.crop / min(rows, columns)
    target = (max(recipe.crop, round(columns * scale)), max(recipe.crop, round(rows * scale)))
    return Window(
        (height - rows) // 2,
        (width - columns) // 2,
        rows,
        columns,
        target,
        (target[1] - recipe.size) // 2,
        (target[0] - recipe.size) // 2,
    )
