# Services under supervisord; the unit tests have a short form.
.PHONY: test-supervisor
test-supervisor: $(READY) ## deployments under a real supervisord, one that is killed too
	RUNBOOK_LONG_TESTS=1 python -m pytest -q -n 2 -r fEs tests/unit/plugins/modules/test_app_service_supervisor.py
