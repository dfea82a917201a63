"""The shapes that an engine is compiled for, and the line that says how far that is."""

from __future__ import annotations

import pytest

from services.errors import ConfigurationError
from services.inference.backends.engine_build import Progress, profile_shapes
from services.messages import Recipe

RECIPE = Recipe(224, 256, (127, 127, 127), (128, 128, 128))


@pytest.mark.parametrize(
    ("declared", "max_batch", "least", "most"),
    [
        ((-1, 3, 224, 224), 32, 1, 32),
        ((-1, 3, -1, -1), 4, 1, 4),
        ((-1, 3, 224, 224), 1, 1, 1),
        ((1, 3, 224, 224), 1, 1, 1),
    ],
)
def test_a_profile_is_from_one_to_the_largest_batch_and_best_for_that(
    declared: tuple[int, ...], max_batch: int, least: int, most: int
) -> None:
    assert profile_shapes("net", declared, RECIPE, max_batch) == (
        (least, 3, 224, 224),
        (most, 3, 224, 224),
        (most, 3, 224, 224),
    )


@pytest.mark.parametrize("declared", [(-1, 3, 320, 320), (-1, 224, 224, 3), (-1, 3, 224), (-1, 150528)])
def test_a_recipe_that_does_not_fit_is_refused(declared: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"'net' does not run on float32 \[1, 3, 224, 224\], which its recipe"):
        profile_shapes("net", declared, RECIPE, 1)


def test_a_batch_that_was_fixed_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"\[8, 3, 224, 224\].*--max-batch 8 .*dynamic.*or use --max-batch 1"):
        profile_shapes("net", (1, 3, 224, 224), RECIPE, 8)
    with pytest.raises(ConfigurationError, match=r"export it with a dynamic batch dimension$"):
        profile_shapes("net", (8, 3, 224, 224), RECIPE, 8)


def test_progress_is_said_every_ten_seconds_of_the_outermost_phase() -> None:
    now, said = [0], []
    progress = Progress(said.append, lambda: now[0])
    progress.phase_start("Building", None, 10)
    progress.phase_start("Timing", "Building", 1000)
    for second in range(1, 31):
        now[0] = second * 1_000_000_000
        assert progress.step_complete("Timing", second)
        if second % 3 == 0:
            assert progress.step_complete("Building", second // 3 - 1)
    progress.phase_finish("Timing")
    progress.phase_finish("Building")
    assert progress.step_complete("Building", 9)
    assert said == ["Building, 40 %", "Building, 80 %"]
