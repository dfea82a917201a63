#!/usr/bin/env bash
# The node's first process: up.sh starts it in namespaces of its own (mounts, network, processes, host name, IPC), and
# it starts every component. What it changes is in these namespaces: when it ends, processes, mounts, network and
# packet filter are gone. It ends when a component does, so that a cluster is whole or is not there.
set -euo pipefail
source "$(dirname "$0")/places.sh"
s=$BEYOND_CLUSTER log=$s/log pki=$s/pki

# Mounts: the usual folders (/var/lib/kubelet, /var/log/pods, ...) lead into $s.
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount --bind "$s/lib" /var/lib
mount --bind "$log" /var/log
# The kubelet insists on these settings of the whole machine: it is shown files that hold the values it wants.
while read -r name value; do
    echo "$value" > "$s/sysctl/${name//\//.}"
    mount --bind "$s/sysctl/${name//\//.}" "/proc/sys/$name"
done <<'SYSCTLS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS

# Network: a cable to the host (its other end is up.sh's), a bridge for the pods, and no way out: a connection to
# anywhere else fails at once.
hostname node
for _ in {1..100}; do ip link show eth0 > /dev/null 2>&1 && break; sleep 0.1; done
ip link set lo up
ip addr add "$NODE_IP/30" dev eth0
ip link set eth0 up
ip link add cni0 type bridge
ip addr add "${PODS%0/24}1/24" dev cni0
ip link set cni0 up
ip route add "$SERVICES" dev cni0
ip route add unreachable default
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1

declare -A names
start() {
    local name=$1; shift
    setsid "$@" > "$log/$name.log" 2>&1 < /dev/null &
    names[$!]=$name
}
component() { start "$1" "$BIN/kubernetes" "$@"; }

start containerd containerd -c "$s/containerd.toml"
component etcd --data-dir /var/lib/etcd --unsafe-no-fsync --log-level warn
component kube-apiserver \
    --advertise-address "$NODE_IP" --secure-port 6443 --allow-privileged \
    --etcd-servers http://127.0.0.1:2379 --service-cluster-ip-range "$SERVICES" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --client-ca-file "$pki/ca.crt" \
    --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
    --kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key "$pki/apiserver-kubelet-client.key" \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-key-file "$pki/sa.pub" --service-account-signing-key-file "$pki/sa.key"
for _ in {1..600}; do
    curl -fs --max-time 5 --cacert "$pki/ca.crt" "https://$NODE_IP:6443/readyz" > /dev/null && break
    sleep 0.2
done
component kube-controller-manager --kubeconfig "$s/controller-manager.conf" --leader-elect=false \
    --use-service-account-credentials --flex-volume-plugin-dir /var/lib/kubelet/plugins-volume \
    --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
    --root-ca-file "$pki/ca.crt" --service-account-private-key-file "$pki/sa.key"
component kube-scheduler --kubeconfig "$s/scheduler.conf" --leader-elect=false
component kubelet --config "$s/kubelet.yaml" --kubeconfig "$s/kubelet.conf" \
    --node-ip "$NODE_IP" --hostname-override node
component kube-proxy --config "$s/kube-proxy.yaml" --hostname-override node
component coredns -conf "$s/Corefile"

status=0
wait -n -p ended "${!names[@]}" || status=$?
echo "${names[$ended]} ended with status $status; see $log/${names[$ended]}.log"
