"""What several integration tests ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.serving import Service
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    """A real door of the default model, its engine in the same process: host:port."""
    service: Service = build_preprocess(parse(PreprocessSettings, "", ["--listen", "127.0.0.1:0"], {}))
    service.start()
    yield service.host_port
    service.stop(5)
