"""`python -m services.inference`: see `--help`."""

from __future__ import annotations

import sys

from services import process
from services.settings import InferenceSettings
from services.wiring import build_inference

DESCRIPTION = (
    "The inference service: one model behind the Open Inference Protocol (gRPC) and, with --consume, behind a broker."
)

if __name__ == "__main__":
    sys.exit(process.run("inference", InferenceSettings, DESCRIPTION, build_inference, sys.argv[1:]))
