#!/usr/bin/env bash
# pki.sh FOLDER ADDRESS SERVICE: a CA, the certificates, and a kubeconfig for each of who asks the API
# at ADDRESS; SERVICE is its address inside of the cluster.
set -euo pipefail
mkdir -p "$1" && cd "$1"
address=$2 service=$3
openssl genrsa -out ca.key 2048 2>/dev/null
openssl req -x509 -new -key ca.key -subj /CN=kubernetes-ca -days 365 -out ca.crt
certificate() { # certificate NAME SUBJECT ALTERNATIVE-NAMES
	openssl genrsa -out "$1.key" 2048 2>/dev/null
	openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
	openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -out "$1.crt" \
		-extfile <(printf 'keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=%s' \
			"${3:-DNS:localhost}") 2>/dev/null
}
kubeconfig() { # kubeconfig NAME
	cat >"$1.conf" <<-K
		apiVersion: v1
		kind: Config
		clusters: [{name: ours, cluster: {server: "https://$address:6443", certificate-authority: $PWD/ca.crt}}]
		users: [{name: $1, user: {client-certificate: $PWD/$1.crt, client-key: $PWD/$1.key}}]
		contexts: [{name: minikube, context: {cluster: ours, user: $1}}]
		current-context: minikube
	K
}
certificate apiserver /CN=kube-apiserver \
	"DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,IP:127.0.0.1,IP:$service,IP:$address"
certificate kubelet-client /O=system:masters/CN=apiserver-kubelet-client
certificate admin /O=system:masters/CN=admin
for name in controller-manager scheduler proxy; do
	certificate "$name" "/CN=system:kube-${name}"
done
for n in 1 2; do
	certificate "node$n" "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:127.0.0.1,IP:${address%.*}.$n"
done
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
for name in admin controller-manager scheduler proxy node1 node2; do kubeconfig "$name"; done
