#!/usr/bin/env bash
# build.sh FOLDER: Kubernetes, etcd, CoreDNS and kube-router from their Go modules into FOLDER/bin,
# and the two images that a cluster itself wants. Ten minutes and more, once; what is there is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
D=${1:?a folder} KUBERNETES=1.34.4 ETCD=3.6.16 COREDNS=1.14.7 KUBE_ROUTER=2.1.0
export GOFLAGS="-mod=mod -p=2" CGO_ENABLED=0
command -v go >/dev/null || { echo "Go 1.25 or later is needed to build a cluster: https://go.dev/dl" >&2; exit 1; }
mkdir -p "$D/bin" "$D/images"

module() { # module NAME VERSION PACKAGE…: an empty module that requires another, with its dependencies
	mkdir -p "$D/src/$1" && cd "$D/src/$1"
	printf 'module build/%s\ngo 1.25\nrequire %s\n' "$1" "$2" >go.mod
	# Kubernetes' own `replace` lines do not reach a module that depends on it.
	[[ $1 != kubernetes ]] || for name in api apiextensions-apiserver apimachinery apiserver \
		cli-runtime client-go cloud-provider cluster-bootstrap code-generator component-base \
		component-helpers controller-manager cri-api cri-client csi-translation-lib \
		dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator \
		kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils \
		pod-security-admission sample-apiserver; do
		echo "replace k8s.io/$name => k8s.io/$name v0.${KUBERNETES#1.}"
	done >>go.mod
	{ printf '//go:build tools\npackage tools\nimport (\n' && printf '_ "%s"\n' "${@:3}" && echo ')'; } >tools.go
	go mod tidy -e >tidy.log 2>&1
}
build() { # build NAME VERSION PACKAGE…
	local missing='' package
	for package in "${@:3}"; do [[ -x $D/bin/$(program "$package") ]] || missing=1; done
	[[ $missing ]] || return 0
	local began=$SECONDS version=k8s.io/component-base/version
	module "$@"
	for package in "${@:3}"; do
		nice -n 10 go build -trimpath -o "$D/bin/$(program "$package")" \
			-ldflags "-s -w -X $version.gitVersion=v$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=34" "$package"
	done
	echo "built $1 in $((SECONDS - began)) s"
}
program() { # program PACKAGE: its last part that is not a version
	local path=${1%/v[0-9]}
	case $path in *etcd/server) echo etcd ;; *) echo "${path##*/}" ;; esac
}
build kubernetes "k8s.io/kubernetes v$KUBERNETES" \
	k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl}
build etcd "go.etcd.io/etcd/server/v3 v$ETCD" go.etcd.io/etcd/server/v3
build coredns "github.com/coredns/coredns v$COREDNS" github.com/coredns/coredns
build kube-router "github.com/cloudnativelabs/kube-router/v2 v$KUBE_ROUTER" \
	github.com/cloudnativelabs/kube-router/v2/cmd/kube-router

image() { # image NAME: of one program, as an archive that containerd imports
	[[ ! -e $D/images/$1.tar ]] || return 0
	local root
	root=$(mktemp -d)
	cp "$D/bin/$1" "$root/"
	python3 "$here/image.py" "docker.io/library/$1:local" "$root" "$D/images/$1.tar" "/$1"
	rm -r "$root"
}
[[ -x $D/bin/pause ]] || {
	mkdir -p "$D/src/pause" && cd "$D/src/pause"
	printf 'module pause\ngo 1.25\n' >go.mod
	# It holds a pod's network, and reaps what the pod's processes leave.
	cat >main.go <<-'GO'
		package main

		import (
			"os"
			"os/signal"
			"syscall"
		)

		func main() {
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
			for received := range signals {
				if received != syscall.SIGCHLD {
					return
				}
				for {
					if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
						break
					}
				}
			}
		}
	GO
	go build -trimpath -ldflags "-s -w" -o "$D/bin/pause" .
}
image pause
image coredns
