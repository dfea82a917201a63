"""A run on disk: `run.json`, for who reports on it or compares it; and which of its requests count."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen.errors import PlanError

SCHEMA = "beyond-inference/run/1"  # docs/results-schema.md


def read_run(path: Path) -> tuple[Path, dict[str, Any]]:
    """The run.json that `path` is, or that lies in it, and what it says. Raises `PlanError`."""
    file = path / "run.json" if path.is_dir() else path
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{file} cannot be read: {error.strerror or error}; name the run.json of a run") from None
    except ValueError:
        raise PlanError(f"{file} is no JSON; name the run.json of a run") from None
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        raise PlanError(f"{file} is not a run of schema {SCHEMA}; name the run.json of a run")
    return file, run


def cut_before_ns(cut: Mapping[str, Any] | None, round_: int) -> float:
    """By a cell's `warmup_cut`: requests of the round that were due before this instant are cut off as warm-up."""
    known = cut or {}
    # A run of one round, and one of an older version, has the one instant for all.
    rounds = {row["round"]: row["before_due_ns"] for row in known.get("rounds", ())}
    before = rounds.get(round_) if rounds else known.get("before_due_ns")
    return -math.inf if before is None else float(before)
