#!/bin/sh
# Of the stand-in for postgres:18.1-trixie: what the official entrypoint does with the variables that
# compose.yaml and the manifests set, started as the image's own user.
set -eu
: "${PGDATA:=/var/lib/postgresql/18/docker}" "${POSTGRES_USER:=postgres}"
: "${POSTGRES_DB:=$POSTGRES_USER}"
if test ! -s "$PGDATA/PG_VERSION"; then
	password=${POSTGRES_PASSWORD_FILE:-}
	if test -z "$password"; then
		password=/tmp/password
		(umask 077 && printf '%s\n' "${POSTGRES_PASSWORD:?}" >"$password")
	fi
	# shellcheck disable=SC2086 # its words are options
	initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$password" ${POSTGRES_INITDB_ARGS:-}
	rm -f /tmp/password
	printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
	# /tmp is where the wheel's own clients look.
	printf "listen_addresses = '*'\nunix_socket_directories = '/run/postgresql,/tmp'\n" >>"$PGDATA/postgresql.conf"
	# By its socket alone until the database exists.
	pg_ctl --pgdata "$PGDATA" --options "-c listen_addresses=''" --wait start
	psql --host /run/postgresql --username "$POSTGRES_USER" --dbname postgres --command "CREATE DATABASE \"$POSTGRES_DB\""
	for file in /docker-entrypoint-initdb.d/*.sql; do
		test ! -e "$file" || psql --host /run/postgresql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --file "$file"
	done
	pg_ctl --pgdata "$PGDATA" --mode fast --wait stop
fi
exec "$@"
