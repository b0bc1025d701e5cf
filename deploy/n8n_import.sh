#!/bin/sh
# Imports the credential and the workflows of the folder /config into n8n's database and publishes
# them. Runs in n8n's own image before n8n, at each start: beside it, n8n would answer 404 afterwards.
# The same again changes nothing: their ids are fixed.
set -eu
config=${1:-/config}

n8n import:credentials --input="$config/n8n_credentials.json"
each() { # each COMMAND: of the folder's workflows, by id
	for workflow in "$config"/n8n_workflows/*.json; do
		n8n "$1" --id="$(node -p 'JSON.parse(fs.readFileSync(process.argv[1])).id' "$workflow")"
	done
}
import() { n8n import:workflow --separate --input="$config/n8n_workflows"; }

# Importing over a published workflow is refused where n8n has never run ("permission to deactivate"):
# a first start that was killed would have left an import that fails for ever.
import || { each unpublish:workflow && import; }
each publish:workflow
