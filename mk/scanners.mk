# The gates of the code as docs/gates.md writes them, with scanners from PyPI; too long for `make test`.
.PHONY: test-scanners
test-scanners: $(READY) ## tests, linters, scanners and an audit from PyPI judge commits, each with one fault
	python -m pytest -q --durations=5 tests/scanners
