"""How tests are shared out when several processes run them (`pytest -n 2`): a module's tests stay together, for they

share what the module has started, and the slow ones come first. Without `-n` this says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# These wait more than they compute: while one process waits, another runs what computes, and so they begin.
_FIRST = ("tests/integration/", "tests/contract/", "tests/chart/")
# Long modules whose tests share nothing from one row of the table to the next.
_BY_ROW = ("tests/integration/test_kafka_contract.py", "tests/contract/test_transports.py")
_ROW = re.compile(r"\[([a-z+]+)")


def in_order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The slow directories first, else as they were."""
    return sorted(items, key=lambda item: next((i for i, at in enumerate(_FIRST) if item.nodeid.startswith(at)), 99))


def together(nodeid: str) -> str:
    """Tests of which this is the same run in one process."""
    module, _, test = nodeid.partition("::")
    row = _ROW.search(test) if module in _BY_ROW else None
    return f"{module}[{row[1]}]" if row else module


class ByModule(LoadScopeScheduling):
    """Gives a process a module, or one row of a long one, at a time."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        """See `pytest_xdist_make_scheduler`."""
        config.option.loadscopereorder = False  # by number of tests, which says little of their time
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)
