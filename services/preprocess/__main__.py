"""`python -m services.preprocess`: see `--help`."""

from __future__ import annotations

import logging
import sys

from services import logs
from services.errors import ConfigurationError
from services.settings import PreprocessSettings, parse
from services.wiring import build_preprocess

DESCRIPTION = (
    "The preprocess service: takes encoded photographs over the Open Inference Protocol (gRPC), decodes and prepares "
    "them, sends tensors to inference over a link, and answers with a ledger of where the time went."
)


def main(argv: list[str]) -> int:
    """Serve until SIGTERM; the exit status: 0 drained, 1 not everything was finished, 2 wrong settings."""
    try:
        settings = parse(PreprocessSettings, DESCRIPTION, argv)
        logs.configure("preprocess", settings.log_level, settings.log_format)
        service = build_preprocess(settings)
    except ConfigurationError as error:
        print(f"preprocess: {error.message}", file=sys.stderr)
        return 2
    service.run()
    drained = service.stop(settings.drain_s)
    logging.shutdown()
    return 0 if drained else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
