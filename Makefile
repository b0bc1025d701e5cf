# The way into the project: `make help`. Needs Python 3.11 to 3.13, nothing else; the tests need
# redis-server, pgbouncer and faketime too, and install them where there is apt-get.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What it takes to run; and with the developers' tools.
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
ARGS ?=
BENCH ?= backfill

# The set-up compiles nothing: what imports a module first keeps it compiled for the others.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo drill up down status health test test-e2e test-faults test-containers \
	test-kubernetes kubernetes-tools reliability soak n8n browser redis-server pgbouncer faketime \
	chromium debootstrap iptables lint types bench docs screenshots lock audit sbom clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Run the main job on real input and show what came (ARGS="--recording FILE")
	@$(BIN)/trading-pipelines demo $(ARGS)

up: $(READY) ## Run it for real: database, daemon, web UI on 127.0.0.1:3000, schedules on
	@$(BIN)/trading-pipelines up $(ARGS)

down: $(READY) ## Stop what `make up` started
	@$(BIN)/trading-pipelines down

status: $(READY) ## Show what is complete to when, in flight, due and why
	@$(BIN)/trading-pipelines status

health: $(READY) ## Say whether all is well, and what to do where it is not
	@$(BIN)/trading-pipelines health

drill: $(READY) ## Play six hours of downtime and show how it heals (ARGS="--hours 24")
	@$(BIN)/trading-pipelines drill $(ARGS)

test: $(DEV) redis-server pgbouncer ## Run all tests that need neither n8n nor a browser
	$(BIN)/python -m pytest $(ARGS)

test-e2e: $(DEV) n8n browser ## Run the tests against the real n8n and in a browser (installs both, once)
	RUN_N8N=1 RUN_BROWSER=1 $(BIN)/python -m pytest -n 2 $(or $(ARGS),tests/n8n tests/browser)

test-faults: $(DEV) faketime ## Run the faults: downtime, kills, full disks, wrong clocks
	RUN_FAULTS=1 $(BIN)/python -m pytest $(or $(ARGS),tests/faults)

test-containers: $(DEV) ## Run deploy/compose.yaml in a container engine, break it, write docs/containers.md (30 min.)
	eval "$$(tests/containers/engine.sh start)" && \
		RUN_CONTAINERS=1 $(if $(ARGS),,CONTAINERS=docs/containers.md) $(BIN)/python -m pytest -n 0 $(or $(ARGS),tests/containers)

reliability: $(DEV) faketime ## The same one after the other, and write the table of docs/reliability.md
	RUN_FAULTS=1 RELIABILITY=docs/reliability.md $(BIN)/python -m pytest -n 0 $(or $(ARGS),tests/faults)

soak: $(DEV) faketime ## An hour of health, then 300 kills (MINUTES=60 KILLS=300)
	RUN_FAULTS=1 FAULTS_MINUTES=$(or $(MINUTES),60) FAULTS_KILLS=$(or $(KILLS),300) \
		$(BIN)/python -m pytest -n 0 --timeout 86400 tests/faults/test_soak.py tests/faults/test_kills.py

test-kubernetes: $(DEV) kubernetes-tools ## Put it on a cluster of two nodes and break it (KUBECONFIG=… takes yours; about an hour)
	eval "$$(tests/containers/engine.sh start)" && tests/containers/base_images.sh && \
		RUN_KUBERNETES=1 $(BIN)/python -m pytest -n 0 --timeout 7200 -s $(or $(ARGS),tests/cluster)

n8n: ## Install the n8n that tests, demo and benchmark run, outside the clone (2.9 GB)
	@deploy/install_n8n.sh

browser: $(DEV) chromium
	@$(BIN)/python -c 'import playwright' 2>/dev/null || { $(call install,playwright==1.65.2); }

redis-server pgbouncer faketime chromium debootstrap iptables:
	@command -v $@ >/dev/null || ! command -v apt-get >/dev/null || { \
		test "$$(id -u)" = 0 || sudo=$$(command -v sudo); \
		echo "installing $@, which the tests start"; \
		$$sudo apt-get update -qq && \
		$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $@ >/dev/null; }

# What a node is made of, beside what tests/cluster/build.sh builds.
NODE := containerd runc iptables ipset conntrack openssl /usr/lib/cni/bridge
kubernetes-tools:
	@test -n "$$KUBECONFIG" || (for one in $(NODE); do command -v $$one || exit 1; done) >/dev/null || \
		! command -v apt-get >/dev/null || { \
		test "$$(id -u)" = 0 || sudo=$$(command -v sudo); \
		echo "installing containerd and what belongs to it, which the nodes run"; \
		$$sudo apt-get update -qq && \
		$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
			$(filter-out /%,$(NODE)) containernetworking-plugins >/dev/null; }

lint: $(DEV) ## Check style, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(DEV) ## Check types
	$(BIN)/mypy

bench: $(DEV) ## Measure (BENCH=alerts, backfill, cuts, growth, live, looking, runs, scaling, scorecard, signals or volatility)
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

docs: $(DEV) ## Write docs/assets/, docs/reference.md and config/n8n_workflows/ anew, from the code
	$(BIN)/python -W ignore docs/asset_pages.py
	$(BIN)/python -W ignore docs/reference.py
	$(BIN)/python deploy/write_n8n_workflows.py

screenshots: browser ## Take the pictures of the docs anew, of an installation made for them
	$(BIN)/python -W ignore docs/screenshots.py

LOCKED := --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-strip-extras --python-version 3.11 --custom-compile-command "make lock" pyproject.toml
SAME := $(LOCKED) -c requirements-dev.lock

lock: $(DEV) ## Write the three locks anew from pyproject.toml: the developers', ours, the container's
	$(BIN)/uv pip compile $(LOCKED) --group dev --all-extras -o requirements-dev.lock
	$(BIN)/uv pip compile $(SAME) --group build -o requirements.lock
	$(BIN)/uv pip compile $(SAME) --group container --extra kubernetes -o deploy/requirements.lock

# Each in an environment of its own: its dependencies are not to change those that are locked.
TOOL := $(BIN)/uv tool run --quiet --python $(BIN)/python
audit: $(DEV) ## Look all locked dependencies up in PyPI's advisories
	$(TOOL) pip-audit@2.10.1 --disable-pip --require-hashes -r requirements-dev.lock

sbom: $(DEV) ## Write dist/sbom.json: what the container is made of, with its hashes (CycloneDX)
	@mkdir -p dist
	PYTHONWARNINGS=ignore $(TOOL) --from cyclonedx-bom==7.5.0 cyclonedx-py requirements \
		deploy/requirements.lock --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.json

clean: ## Remove the virtual environment and the caches; data stay
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# uv from PATH, or else the locked one, installed by pip into the virtual environment. pip takes
# minutes, but reads its own settings (a mirror, a proxy), which uv does not.
pip := $(BIN)/pip install --quiet --disable-pip-version-check
install = PATH=$(BIN):$$PATH uv pip install --quiet --python $(BIN)/python $(1) || { \
	echo "uv cannot: setting up with pip, which takes minutes"; \
	$(PYTHON) -m venv $(VENV) && $(pip) $(1); }
packages = $$(grep '^[a-z]' $(1) | grep -v "; sys_platform == 'win32'" | cut -d= -f1 | sort -u | wc -l)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.13"; exit 1; }
	@echo "setting up $(VENV) with uv: $(call packages,requirements.lock) packages, about 20 s, once"
	@uv venv --quiet --allow-existing $(VENV) \
		--python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" 2>/dev/null || { \
		$(PYTHON) -m venv $(VENV) || exit 1; \
		sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.lock >$(VENV)/uv.txt; \
		$(pip) --require-hashes -r $(VENV)/uv.txt || true; }
	@$(call install,--require-hashes -r requirements.lock)
	@$(call install,--no-deps --no-build-isolation -e .)
	@touch $@

$(DEV): requirements-dev.lock $(READY)
	@echo "adding the developers' tools: $(call packages,requirements-dev.lock) packages in all"
	@$(call install,--require-hashes -r requirements-dev.lock)
	@touch $@
