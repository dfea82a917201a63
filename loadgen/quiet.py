"""No pause of the generator's own while it sends.

Python's cycle collector goes through all that is alive: with the ledgers of 50,000 requests in hand that is most of a
second, in which nobody sends and no answer is taken up. It would be in the latency of whoever is asked just then.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Collect before, never meanwhile; what is alive by then is not looked at again. References are still counted."""
    gc.collect()
    gc.freeze()
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
