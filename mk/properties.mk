# Random migrations on SQLite and PostgreSQL, beside what the plan says of them; the unit tests run a few.
CHAINS ?= 200
SEED ?= 1000

.PHONY: test-properties
test-properties: $(READY) ## many random migrations against what is said of them; CHAINS=200 SEED=1000
	RUNBOOK_CHAINS=$(CHAINS) RUNBOOK_CHAINS_SEED=$(SEED) python -m pytest -q -n 2 tests/unit/plugins/module_utils/test_plan_properties.py
