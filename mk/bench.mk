# How long a deployment takes, against a shell script that does the same by hand; needs a quiet machine.
ROUNDS ?= 5

.PHONY: bench
bench: $(READY) ## times and ratios against a shell script, into build/bench.json; ROUNDS=5
	python tests/containers/engine.py python tests/bench/bench.py --rounds=$(ROUNDS)
