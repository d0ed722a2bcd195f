# A fleet behind a load balancer, deployed under load, with hosts that reboot and vanish; longer than CI has time for.
.PHONY: fleet test-fleet
fleet: ## the scenario fleet in short: HAProxy, three web hosts, a worker, PostgreSQL; deployments under load, reboots, lost hosts
	$(SHORT) $(MAKE) molecule SCENARIO=fleet

test-fleet: ## all of it: each phase with a lost host, twenty pairs of deployments started together
	$(MAKE) molecule SCENARIO=fleet
