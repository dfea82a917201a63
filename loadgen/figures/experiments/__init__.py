"""What each experiment concludes from its cells: a table, and a file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from loadgen.figures.cells import Cell
from loadgen.figures.conclusion import Conclusion
from loadgen.figures.experiments import e1, e2, e3, e4, e5, e6, e7, e8, e9, e10

TABLE: Mapping[str, Callable[[Sequence[Cell]], Conclusion]] = {
    "e1": e1.conclude,
    "e2": e2.conclude,
    "e3": e3.conclude,
    "e4": e4.conclude,
    "e5": e5.conclude,
    "e6": e6.conclude,
    "e7": e7.conclude,
    "e8": e8.conclude,
    "e9": e9.conclude,
    "e10": e10.conclude,
}
