#!/usr/bin/env bash
# Starts a single-node Kubernetes in namespaces of its own, all of it below $BEYOND_CLUSTER. Root only. May be
# interrupted and run again: a node that runs is left as it is, what a dead one left is removed first.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/places.sh"
s=$BEYOND_CLUSTER
deadline=$((SECONDS + 180))
wait_for() {
    until "$@" > /dev/null 2>&1; do
        if [ -z "$(node_pid)" ]; then
            echo "the node ended: $(tail -n 3 "$s/log/node.log")" >&2; exit 1
        fi
        if [ $SECONDS -ge $deadline ]; then
            echo "waited in vain for: $*; see $s/log, then make cluster-down" >&2; exit 1
        fi
        sleep 0.3
    done
}

if [ -z "$(node_pid)" ]; then
    "$here/down.sh"
    mkdir -p "$s"
    # down.sh removes all of it.
    [ -O "$s" ] && [ -z "$(ls -A "$s")" ] || {
        echo "$s is somebody else's, or has something in it; BEYOND_CLUSTER moves the cluster to a folder of its own" >&2
        exit 1
    }
    touch "$s/.cluster"
    "$here/config.sh"
    "$here/cgroups.sh" make
    cd "$s"
    setsid unshare --mount --net --uts --ipc --pid --fork --mount-proc --kill-child \
        "$here/node.sh" > "$s/log/node.log" 2>&1 < /dev/null &
    unshare=$!
    until pgrep -P $unshare > "$s/node.pid"; do kill -0 $unshare; sleep 0.1; done
    ip link add $LINK type veth peer name eth0 netns "$(cat node.pid)"
    ip addr add "$HOST_IP/30" dev $LINK
    ip link set $LINK up
fi

kubectl() { "$BIN/kubectl" --kubeconfig "$s/kubeconfig" --cache-dir "$s/kubectl" "$@"; }
ctr() { "$here/ctr.sh" "$@"; }
wait_for ctr version
[ -n "$(ctr images ls -q name==$PAUSE)" ] || {
    python3 "$here/pause_image.py" "$BIN/pause" $PAUSE "$s/pause.tar"
    ctr images import "$s/pause.tar" > /dev/null
}
wait_for kubectl get node node
# Volumes whose claim has gone are emptied and offered again.
for volume in $(kubectl get pv -o 'jsonpath={.items[?(@.status.phase=="Released")].metadata.name}'); do
    find "$s/lib/volumes/${volume#volume-}" -mindepth 1 -delete
    kubectl delete pv "$volume" --wait=false > /dev/null
    kubectl patch pv "$volume" -p '{"metadata":{"finalizers":null}}' > /dev/null 2>&1 || true
done
kubectl apply -f "$s/objects.yaml" > /dev/null
kubectl wait --for=condition=Ready node/node --timeout=90s > /dev/null
wait_for kubectl get serviceaccount default
