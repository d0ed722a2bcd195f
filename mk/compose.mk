# The demo application in containers of the machine's own engine.
.PHONY: test-compose
test-compose: $(READY) ## deployments, refusals, a rollback and drift under Docker Compose; RUNBOOK_COMPOSE_BASE=image for another one with Python 3
	python tests/containers/engine.py tests/compose/fetch.sh build/compose
	python tests/containers/engine.py python -m pytest -q -r fEs --durations=5 tests/compose
