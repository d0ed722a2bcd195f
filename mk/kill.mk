# A deployment killed at every task and inside the long ones; the demo application on this machine, no root, no containers.
KILL_EVERY ?= 1
KILL_FROM ?= 0
KILL_AT ?=
KILL_SITES ?= 1

.PHONY: test-kill
test-kill: $(READY) ## an upgrade killed at every task, and what is left made good; KILL_EVERY=5 every fifth, KILL_AT=37,52 these, KILL_SITES=2 two at a time
	@mkdir -p build/reports
	KILL_EVERY=$(KILL_EVERY) KILL_FROM=$(KILL_FROM) KILL_AT=$(KILL_AT) KILL_SITES=$(KILL_SITES) KILL_REPORT=build/reports/kill.xml \
		python -m pytest -q -s tests/kill

.PHONY: kill
kill: $(READY) ## every fifth of these points, with another commit others
	@mkdir -p build/reports
	KILL_EVERY=5 KILL_FROM=commit KILL_SITES=2 KILL_REPORT=build/reports/kill.xml python -m pytest -q -s tests/kill/test_kill.py -k every_point
