#!/usr/bin/env bash
# make_secrets.sh [FOLDER]: writes the secrets of compose.yaml into deploy/secrets, or the folder, a file
# each. A value is that of the environment, else of deploy/.env. A password without one stays as it was, or
# is made up at first. Run it again after a change.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/secrets}

fail() {
	printf '%s\n' "$1" >&2
	exit 1
}
given() { # given NAME
	if [[ ${!1-} ]]; then
		printf %s "${!1}"
	elif [[ -f $here/.env ]]; then
		sed -n "s/^$1=//p" "$here/.env" | tail -n 1 | tr -d '\n'
	fi
}
password() { # password NAME
	local value
	value=$(given "$1")
	[[ $value || ! -s $folder/$1 ]] || value=$(cat "$folder/$1")
	printf %s "${value:-$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')}"
}
put() { # put NAME VALUE
	printf %s "$2" >"$folder/.$1"
	# The containers' users read it; of this machine's only who may enter the folder.
	chmod 444 "$folder/.$1"
	mv -f "$folder/.$1" "$folder/$1"
}

umask 077
mkdir -p "$folder"
discord=$(given DISCORD_WEBHOOK_URL)
[[ $discord ]] || fail "DISCORD_WEBHOOK_URL is not set: in the environment, or in deploy/.env (see deploy/.env.example)"
password=$(password POSTGRES_PASSWORD)
[[ $password =~ ^[A-Za-z0-9._~-]+$ ]] ||
	fail "POSTGRES_PASSWORD: letters, digits and . _ ~ - only, as it stands in a URL"
put POSTGRES_PASSWORD "$password"
put DATABASE_URL "postgresql://trading_pipelines:$password@postgres:5432/trading_pipelines"
for name in N8N_WEBHOOK_SECRET N8N_ENCRYPTION_KEY; do put "$name" "$(password "$name")"; done
for name in DISCORD_WEBHOOK_URL HEARTBEAT_URL REDIS_URL REDIS_PASSWORD; do put "$name" "$(given "$name")"; done
printf '%s\n' "The secrets are in $folder: keep them, the database and n8n are made with them."
