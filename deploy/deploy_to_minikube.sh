#!/usr/bin/env bash
# Puts all of it on minikube, and may be run again: what is there and unchanged stays as it is.
set -euo pipefail

usage() {
	cat <<'EOT'
Usage: deploy/deploy_to_minikube.sh [--backfill [--symbols S] [--start DAY] [--end DAY]] [--dry-run]

Starts minikube where it does not run, builds the image of this tree, makes the Secrets, applies
deploy/kubernetes/overlays/minikube, and waits until everything runs.

  --backfill     then fetch candles and compute signals, by Dagster's backfill, and follow it to its
                 end; of the settings' symbols from data.start_date to yesterday, or of
                 --symbols KRW-BTC,KRW-ETH --start 2025-01-01 --end 2025-03-31 (UTC, inclusive)
  --dry-run      print each command, and run none
  -h, --help     this

DISCORD_WEBHOOK_URL, and where they are wanted POSTGRES_PASSWORD, N8N_WEBHOOK_SECRET,
N8N_ENCRYPTION_KEY and HEARTBEAT_URL, come from the environment or else from deploy/.env; what is
missing of the three is made up and kept. MINIKUBE_PROFILE (default: minikube) says which cluster.
Exit status: 0 done, 1 failed, 2 wrong usage.
EOT
}

say() { printf '%s\n' "$*"; }
wrong_usage() {
	say "$1; see --help" >&2
	exit 2
}
fail() {
	say "failed: $1" >&2
	exit 1
}

dry='' backfill='' range=()
while (($#)); do
	case $1 in
		--dry-run) dry=1 ;;
		--backfill) backfill=1 ;;
		--symbols | --start | --end)
			[[ ${2-} =~ ^[A-Z0-9,-]+$ ]] || wrong_usage "$1 wants a value such as KRW-BTC or 2025-01-31"
			range+=("$1" "$2")
			shift
			;;
		-h | --help)
			usage
			exit 0
			;;
		*) wrong_usage "unknown option $1" ;;
	esac
	shift
done
[[ $backfill || ${#range[@]} -eq 0 ]] || wrong_usage "${range[0]} is of --backfill"

cd "$(dirname "$0")/.."
profile=${MINIKUBE_PROFILE:-minikube}
minikube=(minikube --profile "$profile")
# Never the current context: that may be a cluster of somebody's.
kubectl=(kubectl --context "$profile" --namespace trading-pipelines)

# run WHAT-TO-DO COMMAND…: the first that fails ends it.
run() {
	local advice=$1
	shift
	say "+ $*"
	[[ $dry ]] || "$@" || fail "$* (exit status $?): $advice"
}

# asked COMMAND…: what the cluster answers; nothing where it has no answer, or in a dry run.
asked() { [[ $dry ]] || "$@" 2>/dev/null || true; }

for tool in minikube kubectl git; do
	command -v "$tool" >/dev/null || case $tool in
		minikube) fail "there is no minikube: https://minikube.sigs.k8s.io/docs/start" ;;
		kubectl) fail "there is no kubectl: https://kubernetes.io/docs/tasks/tools, or put .venv/bin first in PATH" ;;
		*) fail "there is no git, which names the image's version: install it" ;;
	esac
done

umask 077
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# --- The version: of the commit, and of the tree where that differs from it.
export GIT_INDEX_FILE=$scratch/index # not the clone's own
{ tag=$(git rev-parse --short=12 HEAD) && git read-tree HEAD && git add --all && tree=$(git write-tree); } ||
	fail "this is no clone with a commit, and the image's version is named by it"
unset GIT_INDEX_FILE
[[ $tree == "$(git rev-parse 'HEAD^{tree}')" ]] || tag+=-dirty-${tree:0:8}
image=trading-pipelines:$tag
say "version $tag"

# --- The secrets: never an argument, which `ps` shows, nor printed.
given() { # given NAME: of the environment, else of deploy/.env
	if [[ ${!1-} ]]; then
		say "${!1}"
	elif [[ -f deploy/.env ]]; then
		sed -n "s/^$1=//p" deploy/.env | tail -n 1
	fi
}
stored() { # stored SECRET NAME: what the cluster has; no answer is not the same as nothing
	[[ ! $dry ]] || return 0
	"${kubectl[@]}" get secret "$1" --ignore-not-found --output "jsonpath={.data.$2}" | base64 --decode
}
unread() { fail "the Secret $1 could not be read, and what it holds is nowhere else: see above"; }
made_up() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
put() { # put SECRET: the lines of $scratch/SECRET
	say "+ kubectl create secret generic $1 --from-env-file=<$(cut -d= -f1 "$scratch/$1" | paste -sd,)> | kubectl apply"
	[[ ! $dry ]] || return 0
	"${kubectl[@]}" create secret generic "$1" --from-env-file="$scratch/$1" \
		--dry-run=client --output yaml | "${kubectl[@]}" apply --filename - ||
		fail "the Secret $1 could not be made: see above"
}

discord=$(given DISCORD_WEBHOOK_URL)
[[ $discord ]] || fail "DISCORD_WEBHOOK_URL is not set: in the environment, or in deploy/.env (see deploy/.env.example)"

# --- The cluster and the image.
if [[ $dry ]] || ! "${minikube[@]}" status >/dev/null 2>&1; then
	run "see what it says, or \`minikube delete\` and begin anew" \
		"${minikube[@]}" start --cpus 4 --memory 6g
fi
built() { asked "${minikube[@]}" image ls | grep "/$image\$" >/dev/null; }
if ! built; then
	run "see what the build says; is there room on the disk?" \
		"${minikube[@]}" image build --tag "$image" --file deploy/Dockerfile .
	# `minikube image build` has been seen to end well when the build did not.
	[[ $dry ]] || built ||
		fail "the image $image is not there after the build: see what it says above"
fi
run "is the cluster well? \`minikube status\`" \
	"${kubectl[@]}" apply --filename deploy/kubernetes/base/namespace.yaml

# The database and n8n keep what they were made with.
password=$(stored postgres POSTGRES_PASSWORD) || unread postgres
password=${password:-$(given POSTGRES_PASSWORD)}
password=${password:-$(made_up)}
[[ $password =~ ^[A-Za-z0-9._~-]+$ ]] || fail "POSTGRES_PASSWORD: letters, digits and . _ ~ - only, as it stands in a URL"
key=$(stored n8n N8N_ENCRYPTION_KEY) || unread n8n
key=${key:-$(given N8N_ENCRYPTION_KEY)}
secret=$(given N8N_WEBHOOK_SECRET)
[[ $secret ]] || secret=$(stored n8n N8N_WEBHOOK_SECRET) || unread n8n
secret=${secret:-$(made_up)}
server=trading_pipelines:$password@postgres:5432/trading_pipelines
cat >"$scratch/postgres" <<EOT
POSTGRES_PASSWORD=$password
EOT
cat >"$scratch/n8n" <<EOT
N8N_ENCRYPTION_KEY=${key:-$(made_up)}
N8N_WEBHOOK_SECRET=$secret
DISCORD_WEBHOOK_URL=$discord
EOT
cat >"$scratch/trading-pipelines" <<EOT
DATABASE_URL=postgresql://$server
DAGSTER_POSTGRES_URL=postgresql+psycopg2://${server}_dagster
N8N_WEBHOOK_SECRET=$secret
DISCORD_WEBHOOK_URL=$discord
HEARTBEAT_URL=$(given HEARTBEAT_URL)
EOT
for name in postgres n8n trading-pipelines; do put "$name"; done
# In the pods' templates, so that they are replaced when a secret has changed.
secrets=$(cat "$scratch/n8n" "$scratch/trading-pipelines" | sha256sum | cut -c1-12)
[[ ! $(given REDIS_URL) ]] || say "REDIS_URL is compose's, and not used here"

# --- Everything else. What waits for the migration waits by itself.
show_trouble() { # show_trouble COMPONENT: its pods, what happened to them, what they said last
	"${kubectl[@]}" get pods --selector "app.kubernetes.io/component=$1" || true
	"${kubectl[@]}" get events --field-selector type=Warning --sort-by .lastTimestamp | tail -n 10 || true
	"${kubectl[@]}" logs --selector "app.kubernetes.io/component=$1" --all-containers --prefix \
		--tail 20 || true
} >&2
job=job/migrate-$tag
conditions() {
	asked "${kubectl[@]}" get "$job" \
		--output 'jsonpath={.status.conditions[?(@.status=="True")].type}'
}
if [[ $(conditions) == *Failed* ]]; then
	run "delete it yourself" "${kubectl[@]}" delete "$job"
fi
rendered() {
	kubectl kustomize --load-restrictor LoadRestrictionsNone deploy/kubernetes/overlays/minikube |
		sed "s#trading-pipelines:unreleased#$image#g; s#unreleased#$tag#g; s#unhashed#$secrets#g"
}
say "+ kubectl kustomize deploy/kubernetes/overlays/minikube | kubectl apply"
[[ $dry ]] || rendered | "${kubectl[@]}" apply --filename - ||
	fail "the manifests were refused: see above"
rolled_out() { # rolled_out KIND/NAME
	say "+ kubectl rollout status $1"
	[[ $dry ]] || "${kubectl[@]}" rollout status "$1" --timeout 10m || {
		show_trouble "${1#*/}"
		fail "$1 does not run: its pods and their last lines are above; mend it, and run this again"
	}
}
rolled_out statefulset/postgres
say "+ kubectl wait $job"
deadline=$((SECONDS + 900))
until [[ $dry || $(conditions) == *Complete* ]]; do
	if [[ $(conditions) == *Failed* ]] || ((SECONDS > deadline)); then
		show_trouble migrate
		fail "$job did not migrate the databases: its last lines are above; mend it, and run this again"
	fi
	sleep 2
done
for name in code-server webserver daemon live n8n; do rolled_out "deployment/$name"; done

if [[ $backfill ]]; then
	run "the partitions that failed are named above; the same command asks for them again" \
		"${kubectl[@]}" exec deployment/daemon --container daemon -- \
		trading-pipelines backfill --with-signals ${range[@]+"${range[@]}"}
fi
say "It runs. The web UI, at http://localhost:3000 as long as this runs:"
say "  ${kubectl[*]} port-forward service/webserver 3000:3000"
