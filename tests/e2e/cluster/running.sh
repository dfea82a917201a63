#!/usr/bin/env bash
# Status 0 if the node runs.
source "$(dirname "$0")/places.sh"
node_pid > /dev/null
