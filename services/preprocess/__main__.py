"""`python -m services.preprocess`: see `--help`."""

from __future__ import annotations

import sys

from services import process
from services.settings import PreprocessSettings
from services.wiring import build_preprocess

DESCRIPTION = (
    "The preprocess service: takes encoded photographs over the Open Inference Protocol (gRPC), decodes and prepares "
    "them, sends tensors to inference over a link, and answers with a ledger of where the time went."
)

if __name__ == "__main__":
    sys.exit(process.run("preprocess", PreprocessSettings, DESCRIPTION, build_preprocess, sys.argv[1:]))
