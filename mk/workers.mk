# Celery for real: Redis, workers, a beat, two hosts; the unit tests have a short form.
TASKS ?= 1000

.PHONY: test-workers
test-workers: $(READY) ## a thousand Celery tasks during a deployment and a rollback of two hosts; TASKS=1000
	RUNBOOK_TASKS=$(TASKS) python -m pytest -q -s tests/workers
	python -m pytest -q tests/unit/plugins/modules/test_maintenance_elsewhere.py
