#!/bin/sh
# Imports the credential and the workflows of the folder /config into n8n's database and publishes
# them. Runs in n8n's own image before n8n, at each start: beside it, n8n would answer 404 afterwards.
# The same again changes nothing: their ids are fixed.
set -eu
config=${1:-/config}

each() { # each COMMAND: of the folder's workflows, by id
	for workflow in "$config"/n8n_workflows/*.json; do
		n8n "$1" --id="$(node -p 'JSON.parse(fs.readFileSync(process.argv[1])).id' "$workflow")"
	done
}
# With a slash: in a ConfigMap's volume the folder is a symbolic link, which n8n takes for none.
import() { n8n import:workflow --separate --input="$config/n8n_workflows/"; }

n8n import:credentials --input="$config/n8n_credentials.json"
# Importing over a published workflow is refused where n8n has never run ("permission to deactivate"):
# a first start that was killed would have left an import that fails for ever.
import || { each unpublish:workflow && import; }
each publish:workflow

# n8n ended with 0 where it refused the folder: what it holds now is compared with what it was given.
# The credential is safe to decrypt: it holds the name of a variable, not the secret.
held=$(mktemp -d)
n8n export:workflow --all --output="$held/workflows.json"
n8n export:credentials --id=whSecret00000001 --decrypted --output="$held/credentials.json"
node - "$config" "$held" <<'EOT'
const fs = require('fs')
const [config, held] = process.argv.slice(2)
const read = (path) => JSON.parse(fs.readFileSync(path))
const same = (one, other, keys) => keys.every((key) => JSON.stringify(one?.[key]) === JSON.stringify(other[key]))
const find = (items, { id }) => items.find((item) => item.id === id)
const refuse = (problem) => {
	console.error(`${problem}: see what n8n says above`)
	process.exit(1)
}

const workflows = read(`${held}/workflows.json`)
for (const file of fs.readdirSync(`${config}/n8n_workflows`)) {
	const given = read(`${config}/n8n_workflows/${file}`)
	const stored = find(workflows, given)
	if (!same(stored, given, ['nodes', 'connections', 'settings']))
		refuse(`n8n does not hold the workflow ${file} as it was given`)
	if (stored.activeVersionId !== stored.versionId)
		refuse(`n8n has not published the workflow ${file}`)
}
const credentials = read(`${held}/credentials.json`)
for (const given of read(`${config}/n8n_credentials.json`))
	if (!same(find(credentials, given), given, ['type', 'data']))
		refuse(`n8n does not hold the credential ${given.name} as it was given`)
EOT
rm -r "$held"
