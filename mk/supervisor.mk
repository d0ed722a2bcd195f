# Services under supervisord; the unit tests have a short form.
.PHONY: test-supervisor
test-supervisor: $(READY) ## deployments under a real supervisord, one that is killed too; the playbooks forward, back and with a release that does not boot
	python -m pytest -q -n 2 -r fEs tests/unit/plugins/modules/test_app_service_supervisor.py
	python -m pytest -q -s tests/managers/test_supervisor.py

.PHONY: test-reload
test-reload: $(READY) ## playbooks/reload.yml on the demo's host: what it brings, and what it refuses
	python -m pytest -q -s tests/managers/test_reload.py
