# How long a deployment takes, against a shell script that does the same by hand; needs a quiet machine.
ROUNDS ?= 5

.PHONY: bench bench-deploy bench-backup bench-fleet
bench: ## times and ratios against the same by hand, into build/bench.json; ROUNDS=5
	@failed=0; for target in bench-deploy bench-backup bench-fleet; do $(MAKE) $$target || failed=1; done; exit $$failed

bench-deploy: $(READY) ## deployments, against a shell script
	python tests/containers/engine.py python tests/bench/bench.py --rounds=$(ROUNDS)

bench-backup: $(READY) ## backups of a PostgreSQL database of 300 MB, against pg_dump and pg_restore
	python tests/bench/backup_bench.py --rounds=$(ROUNDS)

bench-fleet: $(READY) ## deployments to 1, 2 and 4 hosts, against a shell script that does one after the other
	python tests/containers/engine.py python tests/bench/fleet_bench.py --rounds=$(ROUNDS)
