#!/usr/bin/env bash
# cluster.sh up | node N | lose N | load N < IMAGE | in N COMMAND… | down
# A Kubernetes of two nodes on this machine, for tests: Linux, root and cgroups v1 (also hybrid).
#
# A node is a network, a mount and a pid namespace with cgroups of its own. Killing its first process
# ends all of it, as if its power had gone, and nothing of it outlives that but files. Node 1 has the
# control plane and the volumes. The machine is on the same cable: the API is at $NET.1, and what the
# tests put on $OUTSIDE is "the internet" to the pods, as no policy takes it for a private address.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
K=${CLUSTER:-${XDG_CACHE_HOME:-$HOME/.cache}/trading-pipelines/cluster}
NAME=trading-pipelines-test NET=10.201.0 PODS=10.245 SERVICES=10.97.0 OUTSIDE=203.0.113
B=$K/bin P=$K/pki
PATH=/usr/sbin:/usr/bin:/sbin:/bin # the nodes' containerd is Debian's, not that of a Docker beside

say() { printf '%(%T)T %s\n' -1 "$*"; }
holder() { cat "$K/run/node$1.pid" 2>/dev/null; }
# --net=… and not `ip netns exec`, which mounts /sys anew: the cgroups would be gone.
inside() { nsenter -t "$(holder "$1")" --net --mount --pid --wdns="$PWD" -- "${@:2}"; }
start() { # start N NAME COMMAND…
	setsid nohup nsenter -t "$(holder "$1")" --net --mount --pid -- "${@:3}" >"$K/run/$2.log" 2>&1 </dev/null &
}
kubectl() { "$B/kubectl" --kubeconfig "$P/admin.conf" "$@"; }
await() { # await SECONDS WHAT COMMAND…
	local end=$((SECONDS + $1))
	until "${@:3}" >/dev/null 2>&1; do
		((SECONDS < end)) || { echo "not within $1 s: $2; see the logs in $K/run" >&2; exit 1; }
		sleep 0.3
	done
}

hold() { # hold N: the namespaces and cgroups of a node
	local n=$1 c
	[[ ! -e $K/run/node$n.pid ]] || { echo "node$n is there already: cluster.sh down" >&2; exit 1; }
	for c in /sys/fs/cgroup/*/; do
		[[ $c == */unified/ ]] || mkdir -p "$c$NAME/node$n"
	done
	for c in cpuset.cpus cpuset.mems; do # a new cpuset is empty
		cat "/sys/fs/cgroup/cpuset/$c" >"/sys/fs/cgroup/cpuset/$NAME/$c"
		cat "/sys/fs/cgroup/cpuset/$c" >"/sys/fs/cgroup/cpuset/$NAME/node$n/$c"
	done
	# Else all pods together weigh as much as one process of anybody's.
	echo 4096 | tee "/sys/fs/cgroup/cpu/$NAME/cpu.shares" >"/sys/fs/cgroup/cpu/$NAME/node$n/cpu.shares"
	mkdir -p "$K/run" "$K/node$n"/{kubelet,pods,logs,cni,addresses,containerd}
	# Bash, as the first process reaps what containerd's shims leave.
	setsid nohup unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private \
		bash -c 'while :; do sleep 100000 & wait $!; done' >/dev/null 2>&1 </dev/null &
	await 10 "a namespace" pgrep -P $!
	pgrep -P $! >"$K/run/node$n.pid"
	await 10 "the namespace's /proc" inside "$n" test -d /proc/1
	inside "$n" bash -euc "
		ip link set lo up
		sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
		mkdir -p /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers /run/containerd /run/netns
		mount --bind $K/node$n/pods /var/lib/kubelet
		mount --bind $K/node$n/addresses /var/lib/cni
		mount --bind $K/node$n/logs /var/log/pods
		for path in /var/log/containers /run/containerd /run/netns; do mount -t tmpfs tmpfs \$path; done
		mount --make-rshared /"
}

masked() { # masked N ADDRESSES: who is there does not know the way to a pod
	inside "$1" iptables -t nat -A POSTROUTING -s "$PODS.0.0/16" -d "$2" -j MASQUERADE
}

configure() { # configure N: containerd, its network, kubelet, kube-proxy
	local n=$1 d=$K/node$1
	cat >"$d/containerd.toml" <<-C
		version = 2
		root = "$d/containerd"
		state = "/run/containerd/state"
		oom_score = 0
		[grpc]
		  address = "/run/containerd/containerd.sock"
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "docker.io/library/pause:local"
		  restrict_oom_score_adj = true
		  disable_apparmor = true
		  [plugins."io.containerd.grpc.v1.cri".cni]
		    bin_dir = "/usr/lib/cni"
		    conf_dir = "$d/cni"
	C
	# Without ipMasq: else the policies of the other node see this node's address, and not the pod's.
	cat >"$d/cni/10-bridge.conflist" <<-C
		{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
		  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
		   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$PODS.$n.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		  {"type": "portmap", "capabilities": {"portMappings": true}}]}
	C
	echo "nameserver 127.0.0.1" >"$d/resolv.conf" # the pods' is the cluster's, which forwards nowhere
	cat >"$d/kubelet.yaml" <<-C
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		address: $NET.$n
		cgroupDriver: cgroupfs
		cgroupRoot: /$NAME/node$n
		failCgroupV1: false
		failSwapOn: false
		featureGates: {KubeletInUserNamespace: true} # where CAP_SYS_RESOURCE is missing
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $P/ca.crt}}
		authorization: {mode: Webhook}
		tlsCertFile: $P/node$n.crt
		tlsPrivateKeyFile: $P/node$n.key
		clusterDNS: [$SERVICES.10]
		clusterDomain: cluster.local
		resolvConf: $d/resolv.conf
		evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
		imageGCHighThresholdPercent: 100 # no registry has them
		imageGCLowThresholdPercent: 99
		enforceNodeAllocatable: [pods]
	C
	cat >"$d/proxy.yaml" <<-C
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		clientConnection: {kubeconfig: $P/proxy.conf}
		clusterCIDR: $PODS.0.0/16
		hostnameOverride: node$n
		mode: iptables
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	C
}

agents() { # agents N: containerd, kubelet, kube-proxy, network policies
	local n=$1 d=$K/node$1 image
	start "$n" "containerd$n" containerd --config "$d/containerd.toml"
	await 60 "containerd of node$n" inside "$n" ctr version
	for image in "$K"/images/{pause,coredns}.tar; do
		inside "$n" ctr -n k8s.io images import "$image" >/dev/null
	done
	start "$n" "kubelet$n" "$B/kubelet" --config="$d/kubelet.yaml" --kubeconfig="$P/node$n.conf" \
		--hostname-override="node$n" --node-ip="$NET.$n" --root-dir="$d/kubelet" --v=2
	start "$n" "kube-proxy$n" "$B/kube-proxy" --config="$d/proxy.yaml"
	await 120 "node$n Ready" kubectl wait --for=condition=Ready "node/node$n" --timeout=1s
	start "$n" "kube-router$n" env NODE_NAME="node$n" "$B/kube-router" --kubeconfig="$P/admin.conf" \
		--hostname-override="node$n" --run-firewall=true --run-router=false --run-service-proxy=false \
		--run-loadbalancer=false --service-cluster-ip-range="$SERVICES.0/24" --iptables-sync-period=30s
	say "node$n is Ready"
}

case ${1:?see the head of the script} in
up)
	# A cluster begins empty; the images stay with containerd.
	rm -rf "$K"/{etcd,volumes,run} "$K"/node?/{kubelet,pods,logs,addresses}
	mkdir -p "$K"/{etcd,run}
	mkdir -p "$K/volumes" && mkdir -m 777 "$K"/volumes/{1,2,3,4} # fsGroup changes no folder of the machine's
	[[ -s $P/admin.conf ]] || "$here/pki.sh" "$P" "$NET.1" "$SERVICES.1"
	hold 1
	configure 1
	# The bridge is the cable that all are on. Without a default route a Service's address has no way.
	inside 1 bash -euc "
		ip link add eth0 type bridge
		ip addr add $NET.1/24 dev eth0
		ip link set eth0 up
		ip route add default dev eth0"
	ip link add tp-test type veth peer name machine netns "$(holder 1)"
	inside 1 ip link set machine master eth0 up
	ip addr add "$NET.254/24" dev tp-test
	for n in 10 11; do ip addr add "$OUTSIDE.$n/32" dev tp-test; done
	ip link set tp-test up
	# By node 1 for both: all pods are one client to the exchange, as behind a router.
	inside 1 ip route add "$OUTSIDE.0/24" dev eth0
	masked 1 "$OUTSIDE.0/24"
	masked 1 "$NET.254"
	start 1 etcd "$B/etcd" --data-dir "$K/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
		--advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
		--initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
	start 1 kube-apiserver "$B/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address="$NET.1" \
		--advertise-address="$NET.1" --service-cluster-ip-range="$SERVICES.0/24" \
		--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
		--tls-cert-file="$P/apiserver.crt" --tls-private-key-file="$P/apiserver.key" --client-ca-file="$P/ca.crt" \
		--kubelet-client-certificate="$P/kubelet-client.crt" --kubelet-client-key="$P/kubelet-client.key" \
		--kubelet-certificate-authority="$P/ca.crt" --kubelet-preferred-address-types=InternalIP \
		--service-account-key-file="$P/sa.pub" --service-account-signing-key-file="$P/sa.key" \
		--service-account-issuer=https://kubernetes.default.svc.cluster.local
	await 120 "the API" kubectl get --raw /readyz
	say "the API answers"
	start 1 kube-controller-manager "$B/kube-controller-manager" --kubeconfig="$P/controller-manager.conf" \
		--service-account-private-key-file="$P/sa.key" --root-ca-file="$P/ca.crt" \
		--use-service-account-credentials --service-cluster-ip-range="$SERVICES.0/24" \
		--leader-elect=false --bind-address=127.0.0.1
	start 1 kube-scheduler "$B/kube-scheduler" --kubeconfig="$P/scheduler.conf" --leader-elect=false \
		--bind-address=127.0.0.1
	agents 1
	sed "s#VOLUMES#$K/volumes#g" "$here/addons.yaml" | kubectl apply -f - >/dev/null
	"$0" node 2
	;;
node) # a further node, or the same again after `lose`
	n=${2:?which node}
	hold "$n"
	configure "$n"
	# A lost node's network lives as long as the connections in it that nobody could close.
	inside 1 ip link delete "to$n" 2>/dev/null || true
	nsenter -t "$(holder 1)" --net ip link add "to$n" type veth peer name eth0 netns "$(holder "$n")"
	inside 1 bash -euc "ip link set to$n master eth0 up; ip route replace $PODS.$n.0/24 via $NET.$n"
	inside "$n" bash -euc "
		ip addr add $NET.$n/24 dev eth0
		ip link set eth0 up
		ip route add default via $NET.1"
	masked "$n" "$NET.254"
	agents "$n"
	;;
lose) # as if its power had gone
	inside "${2:?which node}" ip link set eth0 down # first: the end of a process closes its connections
	kill -9 "$(holder "$2")"
	rm "$K/run/node$2.pid"
	;;
load) inside "${2:?which node}" ctr -n k8s.io images import - ;;
in) inside "${@:2}" ;;
down)
	for file in "$K"/run/node*.pid; do
		[[ ! -e $file ]] || kill -9 "$(cat "$file")" 2>/dev/null || true
		rm -f "$file"
	done
	await 30 "the end of its processes" bash -c "! cat /sys/fs/cgroup/pids/$NAME/node?/tasks /sys/fs/cgroup/pids/$NAME/node?/*/*/*/tasks 2>/dev/null | grep -q ."
	await 180 "the end of its network" bash -c "! ip link show tp-test"
	for c in /sys/fs/cgroup/*/"$NAME"; do
		[[ ! -d $c ]] || find "$c" -depth -type d -exec rmdir {} +
	done
	;;
*) exit 2 ;;
esac
