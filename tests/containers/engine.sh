#!/usr/bin/env bash
# The container engine that `make test-containers` and `make test-kubernetes` use:
#   eval "$(tests/containers/engine.sh start)"     DOCKER_HOST and PATH of an engine that answers
#   tests/containers/engine.sh stop                (kill: at once, as a crash does)
# That is your own Docker where it answers and has compose; else Docker 26 of Debian's packages, as root
# on Linux: unpacked into ~/.cache/trading-pipelines/engine (350 MB, once), on a socket of its own, with
# images and volumes of its own. Nothing is installed on the machine but iptables, where it is missing.
set -euo pipefail
engine=${ENGINE:-$HOME/.cache/trading-pipelines/engine}
log=$engine/dockerd.log

answers() { docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; }
say() { echo "$*" >&2; }

install() ( # in a shell of its own, as it changes the folder
	test ! -x "$engine/cli" || exit 0
	test "$(id -u)" = 0 || { say "no Docker answers, and starting one takes root"; exit 1; }
	make --silent --directory="${0%/*}/../.." iptables >&2
	for program in apt-get dpkg iptables; do
		command -v "$program" >/dev/null || { say "no Docker answers, and installing one takes $program"; exit 1; }
	done
	say "installing Docker into $engine, once"
	rm -rf "$engine/apt" "$engine/root"
	mkdir -p "$engine"/{bin,root,apt/{lists,cache}/partial}
	mirror=$("${0%/*}/debian_mirror.sh")
	# Debian 13's engine; its runc wants a newer glibc than Debian 12's, whose runc runs on both.
	for suite in trixie bookworm; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
	done >"$engine/apt/sources.list"
	: >"$engine/apt/status"
	apt=(apt-get -qq -o Dir::Etc::SourceList="$engine/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o Dir::State="$engine/apt" -o Dir::State::status="$engine/apt/status" -o Dir::Cache="$engine/apt/cache"
		-o APT::Sandbox::User=root)
	"${apt[@]}" update >&2
	cd "$engine/apt"
	"${apt[@]}" download docker.io/trixie docker-cli/trixie docker-buildx/trixie docker-compose/trixie \
		containerd/trixie tini/trixie runc/bookworm >&2
	for package in *.deb; do dpkg -x "$package" "$engine/root"; done
	rm ./*.deb
	ln -sfn tini-static "$engine/root/usr/bin/docker-init"
	for program in "$engine"/root/usr/{bin,sbin}/*; do ln -sfn "$program" "$engine/bin/"; done
	mkdir -p "$engine/cli/cli-plugins"
	ln -sfn "$engine"/root/usr/libexec/docker/cli-plugins/* "$engine/cli/cli-plugins/"
)

case ${1:?} in
start)
	if answers; then exit 0; fi
	install
	export PATH="$engine/bin:$PATH" DOCKER_HOST="unix://$engine/docker.sock" DOCKER_CONFIG="$engine/cli"
	if ! answers; then
		"$0" stop
		# Else, where cgroups are those of version 1, all containers together weigh as much as one process.
		if test -d /sys/fs/cgroup/cpu; then
			mkdir -p /sys/fs/cgroup/cpu/docker
			echo 4096 >/sys/fs/cgroup/cpu/docker/cpu.shares
		fi
		# 20,000: a limit above the machine's own hard one is refused.
		setsid nohup dockerd --host "$DOCKER_HOST" --data-root "$engine/data" --exec-root "$engine/run" \
			--pidfile "$engine/dockerd.pid" --default-ulimit nofile=1024:20000 \
			>>"$log" 2>&1 </dev/null &
		for _ in $(seq 120); do answers || sleep 0.5; done
		answers || { say "dockerd does not answer: see $log"; exit 1; }
	fi
	printf 'export %s=%q\n' PATH "$PATH" DOCKER_HOST "$DOCKER_HOST" DOCKER_CONFIG "$DOCKER_CONFIG"
	;;
stop | kill)
	test -s "$engine/dockerd.pid" || exit 0
	pid=$(<"$engine/dockerd.pid")
	signal=TERM; test "$1" = stop || signal=KILL
	kill -"$signal" "$pid" 2>/dev/null || true
	while test -e "/proc/$pid"; do sleep 0.2; done
	;;
*) exit 2 ;;
esac
