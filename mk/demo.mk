# The main job on one machine: no root, no Docker, everything below .demo/.
DEMO_DIR := .demo
DEMO_VENV := $(DEMO_DIR)/venv
DEMO_PORT ?= 8787
DEMO_RUN = PATH="$(CURDIR)/$(DEMO_VENV)/bin:$$PATH" DEMO_PORT=$(DEMO_PORT) ansible-playbook -i inventories/demo

.PHONY: demo demo-upgrade demo-failure demo-rollback demo-status demo-clean

$(DEMO_VENV)/.installed: requirements.txt
	@mkdir -p $(DEMO_DIR)
	@echo 'Installing ansible-core into $(DEMO_VENV) …'
	@python3 -m venv $(DEMO_VENV)
	@$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEMO_DIR)/goexplorer.git/.made: tests/applications/make_repository.py $(shell find tests/applications/goexplorer -type f 2>/dev/null)
	@python3 tests/applications/make_repository.py $(DEMO_DIR)/goexplorer.git >/dev/null
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
	@echo "Look at http://127.0.0.1:$(DEMO_PORT), then go on with: make demo-upgrade, demo-failure, demo-rollback, demo-status, demo-clean."

demo-upgrade: demo-prepare
	@$(DEMO_RUN) playbooks/deploy.yml -e version=v2.7
	@$(DEMO_RUN) playbooks/status.yml

# Which version answers, asked from outside: fails where nothing answers, or something else.
DEMO_ANSWER = python3 -c 'import urllib.request as r; print(r.urlopen("http://127.0.0.1:$(DEMO_PORT)/healthz/", timeout=5).headers["X-Goexplorer-Version"] or exit(1))' 2>/dev/null

# The deployment has to fail, and the release before has to answer afterwards.
demo-failure:
	@$(DEMO_ANSWER) >/dev/null || { echo "The demo application does not answer at http://127.0.0.1:$(DEMO_PORT): run make demo first." >&2; exit 1; }
	@$(MAKE) --no-print-directory demo-prepare
	@before=$$($(DEMO_ANSWER)); \
	if $(DEMO_RUN) playbooks/deploy.yml -e version=broken-health; then \
	  echo "The broken release was accepted: this is a defect." >&2; exit 1; fi; \
	after=$$($(DEMO_ANSWER)) || after=nothing; \
	if test "$$after" != "$$before"; then \
	  echo "$$before answered before the broken release, $$after answers now: this is a defect." >&2; exit 1; fi; \
	echo "The broken release was refused, as it should be, and $$after answers as before."
	@$(DEMO_RUN) playbooks/status.yml

demo-rollback: demo-prepare
	@$(DEMO_RUN) playbooks/rollback.yml
	@$(DEMO_RUN) playbooks/status.yml

demo-status: demo-prepare
	@$(DEMO_RUN) playbooks/status.yml

demo-clean:
	@if test -d $(DEMO_DIR)/srv; then \
	  $(MAKE) -s --no-print-directory $(DEMO_VENV)/.installed $(DEMO_DIR)/secret >/dev/null && \
	  $(DEMO_RUN) playbooks/remove.yml -e remove_confirm=goexplorer -e deployment_take_over=true; fi
	@if test -d $(DEMO_DIR); then chmod -R u+w $(DEMO_DIR) && rm -rf $(DEMO_DIR) && echo "$(DEMO_DIR) is removed."; fi
