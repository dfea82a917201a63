# Where things are, and what they are called; sourced by the scripts beside it.
#
#   BEYOND_CACHE     what is built or fetched once and kept (default: ~/.cache/beyond-inference)
#   BEYOND_CLUSTER   the running cluster: all of it; down.sh removes it (default: /var/tmp/beyond-inference-cluster)
BEYOND_CACHE=$(realpath -m "${BEYOND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/beyond-inference}")
BEYOND_CLUSTER=$(realpath -m "${BEYOND_CLUSTER:-/var/tmp/beyond-inference-cluster}")
KUBERNETES=$(sed -n 's|^\tk8s.io/kubernetes ||p' "$(dirname "${BASH_SOURCE[0]}")/kubernetes/go.mod")
BIN=$BEYOND_CACHE/kubernetes-$KUBERNETES
CNI=/usr/lib/cni
PAUSE=localhost/pause:1
# The control group of all pods, and the host's end of the cable: one cluster per machine at a time.
CGROUP=beyond-inference LINK=beyond0
NODE_IP=10.200.0.1 HOST_IP=10.200.0.2 PODS=10.244.0.0/24 SERVICES=10.96.0.0/16
export BEYOND_CACHE BEYOND_CLUSTER

node_pid() {
    # The node's first process, if it runs: it is known by its working folder.
    local pid
    pid=$(cat "$BEYOND_CLUSTER/node.pid" 2> /dev/null) || return
    [ "$(readlink "/proc/$pid/cwd")" = "$BEYOND_CLUSTER" ] && echo "$pid"
}
