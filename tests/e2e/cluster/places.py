"""Where the cluster is; `places.sh` beside this file says the same to the scripts."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent
CLUSTER = Path(os.environ.get("BEYOND_CLUSTER") or "/var/tmp/beyond-inference-cluster").resolve()  # noqa: S108 # root's
KUBECONFIG = CLUSTER / "kubeconfig"
