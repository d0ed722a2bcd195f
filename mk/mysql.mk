# MySQL's own server in the place of MariaDB's, of Debian unstable, unpacked below build/ without being installed.
MYSQL_TESTS ?= module_utils/test_mysql.py modules/test_migration_servers.py modules/test_migration_alembic_servers.py modules/test_rehearsal.py modules/test_rehearsal_killed.py modules/test_scratch_elsewhere.py module_utils/test_sql_gate.py module_utils/test_flags.py

.PHONY: test-mysql
test-mysql: $(READY) ## the tests of MySQL and MariaDB, with MySQL's own server and clients; MYSQL_TESTS="module_utils/test_mysql.py" for some
	tests/mysql/fetch.sh build/mysql
	MYSQL_BIN=$(CURDIR)/build/mysql/bin python -m pytest -q -n 2 -r fEs -k "mysql" $(addprefix tests/unit/plugins/,$(MYSQL_TESTS))
