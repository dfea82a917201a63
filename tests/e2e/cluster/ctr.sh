#!/usr/bin/env bash
# containerd's own client, in the node: ctr.sh images ls
set -euo pipefail
source "$(dirname "$0")/places.sh"
pid=$(node_pid) || { echo "no cluster runs here; make cluster-up starts one" >&2; exit 1; }
exec nsenter -t "$pid" -m -n -p ctr -n k8s.io "$@"
