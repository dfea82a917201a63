"""Energy meters, where the machine has some: RAPL's of the CPU packages, and those of NVIDIA boards.

RAPL by Linux's powercap (Documentation/power/powercap/powercap.rst), which only root may read since 2020; boards by
NVML (nvmlDeviceGetTotalEnergyConsumption, from Volta on), through the package `nvidia-ml-py`. Gross: what the machine
takes when it does nothing is in it. Nothing of NVML's has run on a machine of ours yet.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

POWERCAP = Path("/sys/class/powercap")


class Meter(NamedTuple):
    """A reading in microjoules; the counter begins anew beyond `wraps_uj` (0: it does not)."""

    uj: int
    wraps_uj: int


def read(powercap: Path = POWERCAP) -> dict[str, Meter]:
    """All meters that can be read, by name; none is no error."""
    return {**dict(_packages(powercap)), **dict(_boards())}


def _packages(powercap: Path) -> Iterator[tuple[str, Meter]]:
    """Packages only: cores, uncore and memory of `intel-rapl:0:0` and its like are parts of them.

    And they are parts of `psys`, the whole platform's, which stands beside them: a sum would have them twice.
    """
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") != 1:
            continue
        with contextlib.suppress(OSError, ValueError):
            name = (folder / "name").read_text().strip()
            if not name.startswith("package"):
                continue
            counter = int((folder / "energy_uj").read_text())
            yield f"cpu {name}", Meter(counter, int((folder / "max_energy_range_uj").read_text()))


def _boards() -> Iterator[tuple[str, Meter]]:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                yield f"gpu {index}", Meter(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1000, 0)
        finally:
            nvml.nvmlShutdown()


def spent_j(before: Mapping[str, Meter], after: Mapping[str, Meter]) -> dict[str, float]:
    """Between two readings, by meter, in joules; a counter may have begun anew once in between."""
    spent = {}
    for name, now in after.items():
        if name in before:
            difference = now.uj - before[name].uj
            spent[name] = (difference if difference >= 0 else difference + now.wraps_uj) / 1e6
    return spent
