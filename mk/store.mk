# Backups in Ceph's own server for S3, of Debian 13, unpacked below build/ without being installed; the other tests have moto's.
STORE_TESTS ?= modules/test_backup_store.py modules/test_backup_store_faults.py modules/test_backup_store_lifecycle.py action/test_backup_playbook.py

.PHONY: test-store test-store-unit test-store-hosts
test-store: test-store-unit test-store-hosts ## copies of backups in Ceph's S3: the module, and a host that lost its backup and is rolled back

test-store-unit: $(READY)
	tests/ceph/fetch.sh build/ceph
	RADOSGW_BIN=$(CURDIR)/build/ceph/bin python -m pytest -q -n 2 -r fEs $(addprefix tests/unit/plugins/,$(STORE_TESTS))

test-store-hosts: $(READY)
	tests/ceph/fetch.sh build/ceph
	RADOSGW_BIN=$(CURDIR)/build/ceph/bin PYTEST_ADDOPTS="-k test_5_store" $(MAKE) molecule SCENARIO=postgresql
