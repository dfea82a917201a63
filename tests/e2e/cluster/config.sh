#!/usr/bin/env bash
# Writes what the node's components are told, below $BEYOND_CLUSTER: certificates, kubeconfigs, a file per component.
set -euo pipefail
source "$(dirname "$0")/places.sh"
s=$BEYOND_CLUSTER
mkdir -p "$s"/{cni,log,pki,sysctl} "$s"/lib/volumes/{1..10}
chmod 777 "$s"/lib/volumes/*

cat > "$s/kubeadm.yaml" <<YAML
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: $NODE_IP}
nodeRegistration: {name: node, criSocket: unix:///run/containerd/containerd.sock}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: $KUBERNETES
certificatesDir: $s/pki
networking: {serviceSubnet: $SERVICES, podSubnet: $PODS}
YAML
kubeadm() { "$BIN/kubernetes" kubeadm init phase "$@" --config "$s/kubeadm.yaml" >> "$s/log/kubeadm.log"; }
kubeadm certs all
for who in super-admin controller-manager scheduler kubelet; do kubeadm kubeconfig $who --kubeconfig-dir "$s"; done
cp "$s/super-admin.conf" "$s/kubeconfig"

cat > "$s/containerd.toml" <<TOML
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE"
  # Where root lacks CAP_SYS_RESOURCE no container would start without it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI"
    conf_dir = "$s/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML

cat > "$s/cni/10-pods.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON

cat > "$s/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $s/pki/ca.crt}}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: [$NODE_IP]                # CoreDNS is a process of the node, not a pod
resolvConf: ""
volumePluginDir: /var/lib/kubelet/plugins-volume
imageGCHighThresholdPercent: 100      # images come from no registry: none may go
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 200Mi, nodefs.available: 1%, imagefs.available: 1%}
YAML

cat > "$s/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $s/super-admin.conf}
clusterCIDR: $PODS
conntrack: {maxPerCore: 0, min: 0}    # machine-wide settings: left alone
YAML

# What no Service is called does not exist: there is no way out.
cat > "$s/Corefile" <<COREFILE
.:53 {
    bind $NODE_IP
    errors
    kubernetes cluster.local in-addr.arpa {
        kubeconfig $s/super-admin.conf
        pods insecure
        ttl 5
    }
    cache 5
    template ANY ANY {
        rcode NXDOMAIN
    }
}
COREFILE

# Volumes for claims. (The controller manager's own provisioner makes folders that an fsGroup cannot write to.)
cat > "$s/objects.yaml" <<'YAML'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
# What kubeadm's certificates count on, the API server's towards the kubelet among them.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kubeadm:cluster-admins}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: kubeadm:cluster-admins}]
YAML
for i in {1..10}; do cat >> "$s/objects.yaml" <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: volume-$i}
spec:
  capacity: {storage: 20Gi}
  accessModes: [ReadWriteOnce, ReadWriteMany]
  storageClassName: standard
  local: {path: /var/lib/volumes/$i}
  nodeAffinity:
    required:
      nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]
YAML
done
