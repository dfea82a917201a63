#!/usr/bin/env bash
# Stops the cluster and removes all of it. Binaries and container images in the cache stay.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/places.sh"
[ -e "$BEYOND_CLUSTER/.cluster" ] || exit 0

if pid=$(node_pid); then
    kill -9 "$pid"
    for _ in {1..200}; do [ -e "/proc/$pid" ] || break; sleep 0.1; done
fi
"$here/cgroups.sh" remove
rm -rf "$BEYOND_CLUSTER"
