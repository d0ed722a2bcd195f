# The main job on one machine: no root, no Docker, everything below .demo/.
DEMO_DIR := .demo
DEMO_VENV := $(DEMO_DIR)/venv
DEMO_PORT ?= 8787
DEMO_RUN = PATH="$(CURDIR)/$(DEMO_VENV)/bin:$$PATH" DEMO_PORT=$(DEMO_PORT) ansible-playbook -i inventories/demo

.PHONY: demo demo-upgrade demo-failure demo-rollback demo-status demo-clean

$(DEMO_VENV)/.installed: requirements.txt
	@mkdir -p $(DEMO_DIR)
	python3 -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEMO_DIR)/goexplorer.git/.made: tests/applications/make_repository.py $(shell find tests/applications/goexplorer -type f 2>/dev/null)
	python3 tests/applications/make_repository.py $(DEMO_DIR)/goexplorer.git
	@touch $@

$(DEMO_DIR)/secret: 
	@mkdir -p $(DEMO_DIR)
	@umask 077; python3 -c 'import secrets; print(secrets.token_urlsafe(48))' > $@

.PHONY: demo-prepare
demo-prepare: $(DEMO_VENV)/.installed $(DEMO_DIR)/goexplorer.git/.made $(DEMO_DIR)/secret
	@$(DEMO_RUN) playbooks/setup.yml

demo: demo-prepare
	@$(DEMO_RUN) playbooks/deploy.yml -e version=v2.6
	@$(DEMO_RUN) playbooks/status.yml

demo-upgrade: demo-prepare
	@$(DEMO_RUN) playbooks/deploy.yml -e version=v2.7
	@$(DEMO_RUN) playbooks/status.yml

# The deployment has to fail, and the release before has to answer afterwards.
demo-failure: demo-prepare
	@if $(DEMO_RUN) playbooks/deploy.yml -e version=broken-health; then \
	  echo "The broken release was accepted: this is a defect." >&2; exit 1; \
	else echo "The broken release was refused, as it should be. What answers now:"; fi
	@$(DEMO_RUN) playbooks/status.yml

demo-rollback: demo-prepare
	@$(DEMO_RUN) playbooks/rollback.yml
	@$(DEMO_RUN) playbooks/status.yml

demo-status: demo-prepare
	@$(DEMO_RUN) playbooks/status.yml

demo-clean:
	@if test -d $(DEMO_DIR)/srv && test -x $(DEMO_VENV)/bin/ansible-playbook; then $(DEMO_RUN) playbooks/remove.yml; fi
	@if test -d $(DEMO_DIR); then chmod -R u+w $(DEMO_DIR) && rm -rf $(DEMO_DIR); fi
