# `make test` is everything that CI runs; `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.complete
SCENARIO ?=
# What the short form of a scenario leaves out.
SHORT := PYTEST_ADDOPTS="-m 'not long' $${PYTEST_ADDOPTS:-}"
RERUNS ?= 0
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Colours are for people; a log is read by programs too.
export PY_COLORS := 0
export ANSIBLE_FORCE_COLOR := 0

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do printf '  %-16s %s\n' "$$target" "$$text"; done

.PHONY: venv
venv: $(READY) ## the development environment in .venv

$(READY): requirements-dev.txt tests/make_venv.sh
	@tests/make_venv.sh "$(PYTHON)" "$(VENV)" requirements-dev.txt
	@touch $@

.PHONY: lint lint-yaml lint-ansible lint-python lint-format lint-specs
lint: lint-yaml lint-ansible lint-python lint-format lint-specs ## yamllint, ansible-lint, ruff, specifications against defaults

lint-yaml: $(READY)
	yamllint --strict .

lint-ansible: $(READY)
	ansible-lint --offline --strict

lint-python: $(READY)
	ruff check --no-cache .

lint-format: $(READY)
	ruff format --no-cache --check .

lint-specs: $(READY)
	python tests/check_specs.py

.PHONY: unit unit-long
unit: $(READY) ## unit tests but the long ones; RERUNS=1 gives a failed one a second attempt, and names it
	@mkdir -p build/reports
	python -m pytest -q -n 2 -r fEsR -m 'not long' --reruns $(RERUNS) --junitxml=build/reports/unit.xml tests/unit

unit-long: $(READY) ## the long ones: further engines, hosts, steps to be killed at
	python -m pytest -q -n 2 -r fEs -m long tests/unit

.PHONY: sanity
sanity: $(READY) ## ansible-test sanity on the committed state
	python tests/run_sanity.py

.PHONY: build
build: $(READY) ## the collection's archive in build/
	ansible-galaxy collection build --force --output-path build

.PHONY: image
image: $(READY) ## the image of the test hosts
	python tests/containers/engine.py python tests/containers/image.py

.PHONY: molecule
molecule: $(READY) ## a scenario on real hosts in containers; SCENARIO=name for another than default
	@mkdir -p build/reports
	@molecule reset --all >build/molecule-reset.log 2>&1 # an interrupted run leaves the note that the hosts exist
	python tests/containers/engine.py molecule test $(if $(SCENARIO),--scenario-name $(SCENARIO),--all --exclude guards --exclude postgresql --exclude mariadb --exclude gates --exclude rollback --exclude fleet)

.PHONY: postgresql test-postgresql
postgresql: ## the scenario postgresql in short: a PostgreSQL server, constant writers; upgrades, restores, faults, an object store
	$(SHORT) $(MAKE) molecule SCENARIO=postgresql

test-postgresql: ## all of it: ways back by hand after traffic, and with a person's consent given later, too
	$(MAKE) molecule SCENARIO=postgresql

.PHONY: mariadb test-mariadb
mariadb: ## the scenario mariadb in short: a MariaDB server, Alembic, constant writers; upgrades and all ways back
	$(SHORT) $(MAKE) molecule SCENARIO=mariadb

test-mariadb: ## all of it: with a person's decision, killed dumps and a server killed during a restore, too
	$(MAKE) molecule SCENARIO=mariadb

.PHONY: guards test-guards
guards: ## the scenario guards in short: a refusal, a lost host, a killed run, an archive, an adoption, on two hosts
	PYTEST_ADDOPTS="-m short $${PYTEST_ADDOPTS:-}" $(MAKE) molecule SCENARIO=guards

test-guards: ## all of it: refusals, lost hosts, killed runs, sources and adoption; longer than CI has time for
	$(MAKE) molecule SCENARIO=guards

.PHONY: gates test-gates
gates: ## the scenario gates in short: PostgreSQL, Redis, Celery, TLS; many things are broken at once, and exactly the right checks fail
	$(SHORT) $(MAKE) molecule SCENARIO=gates

test-gates: ## all of it: one thing is broken after the other
	$(MAKE) molecule SCENARIO=gates

.PHONY: rollback test-rollback
rollback: ## the scenario rollback in short: SQLite alone, the levels that come most often
	RUNBOOK_ROLLBACK=short $(MAKE) molecule SCENARIO=rollback

test-rollback: ## each level by a fault on SQLite and on PostgreSQL, each tag alone, a rollback that fails half way; longer than CI has time for
	$(MAKE) molecule SCENARIO=rollback

.PHONY: test
test: $(READY) ## all of it; ends with the number of tests that passed and failed
	@MAKE="$(MAKE)" RERUNS=1 python tests/run_all.py

.PHONY: clean
clean: ## what builds and tests left behind, except the environment
	rm -rf build tests/output .cache .ansible

# Further targets: demonstration, benchmark.
-include mk/*.mk
