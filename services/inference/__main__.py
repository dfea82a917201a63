"""`python -m services.inference`: see `--help`."""

from __future__ import annotations

import logging
import sys

from services import logs
from services.errors import ConfigurationError
from services.settings import InferenceSettings, parse
from services.wiring import build_inference

DESCRIPTION = (
    "The inference service: one model behind the Open Inference Protocol (gRPC) and, with --consume, behind a broker."
)


def main(argv: list[str]) -> int:
    """Serve until SIGTERM; the exit status: 0 drained, 1 not everything was finished, 2 wrong settings."""
    try:
        settings = parse(InferenceSettings, DESCRIPTION, argv)
        logs.configure("inference", settings.log_level, settings.log_format)
        service = build_inference(settings)
    except ConfigurationError as error:
        print(f"inference: {error.message}", file=sys.stderr)
        return 2
    service.run()
    drained = service.stop(settings.drain_s)
    logging.shutdown()
    return 0 if drained else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
