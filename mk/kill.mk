# A deployment killed at every task and inside the long ones; the demo application on this machine, no root, no containers.
KILL_EVERY ?= 1
KILL_FROM ?= 0
KILL_AT ?=

.PHONY: test-kill
test-kill: $(READY) ## an upgrade killed at every task, and what is left made good; KILL_EVERY=5 every fifth, KILL_AT=37,52 these
	KILL_EVERY=$(KILL_EVERY) KILL_FROM=$(KILL_FROM) KILL_AT=$(KILL_AT) python -m pytest -q -s tests/kill

.PHONY: kill
kill: ## some of these points, with another commit others
	$(MAKE) test-kill KILL_EVERY=16 KILL_FROM=commit
