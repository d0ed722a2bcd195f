# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract with the user: every ``app_`` variable with its type and default, and the keys that a mapping may have.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Variable(NamedTuple):
    """One variable of the contract.

    ``kind``: str, int, bool, path, list, dict, or batch, what ``serial`` of a play takes. ``default``: None means that it has to be given;
    ``{name}`` in a text is replaced by ``app_name``. ``secret``: its values never leave a module's options.
    """

    kind: str
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    secret: bool = False


VARIABLES: dict[str, Variable] = {
    "app_name": Variable("str", None, "Name of the application: lower-case letters, digits and dashes."),
    "app_stage": Variable("str", None, "Stage this inventory describes, such as production."),
    "app_root": Variable("path", "/srv/{name}", "Directory on the hosts that holds everything."),
    "app_user": Variable("str", "{name}", "User that the application runs as."),
    "app_primary": Variable("str", "", "Host that backs up and migrates; the first of group app by default."),
    "app_repository": Variable("str", "", "Git repository that the hosts fetch from."),
    "app_repository_key": Variable("str", "", "Text of the deploy key for app_repository.", secret=True),
    "app_repository_known_hosts": Variable("str", "", "Lines of known_hosts for app_repository."),
    "app_archive": Variable(
        "dict", {}, "Instead of a repository: path of a tar file on the controller, and its sha256."
    ),
    "app_version": Variable("str", "", "Tag, branch or commit to deploy; `-e version=` is an alias."),
    "app_directory": Variable("str", "", "Where manage.py or alembic.ini is, inside the repository."),
    "app_python": Variable("str", "python3", "Interpreter that the environment is made from."),
    "app_requirements": Variable(
        "list", ["requirements.txt"], "Requirement files, relative to app_directory."
    ),
    "app_constraints": Variable("list", [], "Constraint files, relative to app_directory."),
    "app_packages": Variable("list", [], "Packages to install besides the requirement files."),
    "app_build_environment": Variable(
        "dict", {}, "Variables for building only: proxy, index, certificates.", secret=True
    ),
    "app_environment": Variable(
        "dict", {}, "Variables of every command and service of the application.", secret=True
    ),
    "app_shared": Variable("list", ["media"], "Paths that outlive releases, linked into each of them."),
    "app_framework": Variable(
        "str", "django", "What migrates the database.", ("django", "alembic", "command", "none")
    ),
    "app_settings_module": Variable("str", "", "DJANGO_SETTINGS_MODULE."),
    "app_migrate_initial_command": Variable(
        "list", [], "Command run once, after the first migration of an empty database."
    ),
    "app_migrate_command": Variable(
        "list", [], "The application's own command for its database, with app_framework: command."
    ),
    "app_migrate_command_environment": Variable(
        "dict", {}, "Variables that point app_migrate_command at the copy: {path}, {name}, …", secret=True
    ),
    "app_migrate_time_limit": Variable("int", 300, "Seconds that all migrations together may take."),
    "app_migrate_blocking_limit": Variable(
        "int", 0, "Seconds that visitors may wait for one migration, by the rehearsal; 0 for no limit."
    ),
    "app_migrate_rehearse": Variable(
        "str",
        "auto",
        "Whether pending migrations are run on the copy first, forward and back.",
        ("auto", "always", "never"),
    ),
    "app_migrate_rehearse_environment": Variable(
        "dict", {}, "Variables besides app_environment while migrations are rehearsed.", secret=True
    ),
    "app_migrate_lock_timeout": Variable(
        "int", 5, "Seconds a migration's statement may wait for a lock, while the site queues behind it."
    ),
    "app_collectstatic_commands_before": Variable(
        "list", [], "Commands (lists of words) to run before collectstatic."
    ),
    "app_collectstatic_commands_after": Variable(
        "list", [], "Commands (lists of words) to run after collectstatic."
    ),
    "app_database": Variable(
        "dict", {}, "The database: engine, and path or name. Empty where the application has none."
    ),
    "app_database_admin": Variable(
        "dict", {}, "A role that may make and rename databases: user, password, os_user.", secret=True
    ),
    "app_backup_when": Variable(
        "str", "always", "When a deployment backs up.", ("always", "migrations", "never")
    ),
    "app_backup_verify": Variable("str", "restore", "How a backup is verified.", ("restore", "read", "none")),
    "app_backup_keep": Variable("int", 10, "Backups to keep."),
    "app_backup_keep_days": Variable("int", 0, "Days after which a backup goes, too; 0 for none."),
    "app_backup_keep_minimum": Variable("int", 3, "So many of the newest backups stay, however old."),
    "app_restore_keep_days": Variable(
        "int", 0, "Days after which what restores put aside goes; 0 for never."
    ),
    "app_backup_store": Variable(
        "dict", {}, "Object store that gets copies of the backups: bucket, endpoint, keys.", secret=True
    ),
    "app_releases_keep": Variable("int", 5, "Complete releases to keep."),
    "app_records_keep": Variable("int", 100, "Records of deployments to keep on the hosts; 0 for all."),
    "app_services": Variable("list", None, "The processes of the application."),
    "app_health_checks": Variable(
        "list",
        [{"url": "/healthz/", "status": [200]}],
        "Checks a new instance must pass before it gets traffic.",
    ),
    "app_health_successes": Variable("int", 2, "Consecutive successes that make an instance healthy."),
    "app_health_host": Variable("str", "", "Host header of health checks; the host of app_url by default."),
    "app_start_timeout": Variable("int", 60, "Seconds an instance may take until it is healthy."),
    "app_gate_timeout": Variable("int", 20, "Seconds an instance, or app_url, may answer wrong."),
    "app_stay_up": Variable("int", 5, "Seconds a healthy instance must stay up before it gets traffic."),
    "app_drain_timeout": Variable("int", 30, "Seconds an old instance may take to finish what it does."),
    "app_smoke_tests": Variable("list", [], "Checks and flows through app_url after the switch."),
    "app_smoke_secrets": Variable("dict", {}, "Values for {secret.name} in smoke tests.", secret=True),
    "app_smoke_timeout": Variable("int", 300, "Seconds that all smoke tests together may take."),
    "app_smoke_critical_only": Variable(
        "bool", False, "Ask only the critical ones of the smoke tests, and of app_gates after the switch."
    ),
    "app_gates": Variable("list", [], "Checks of hosts and of what the application needs, before and after."),
    "app_gate_waivers": Variable(
        "list", [], "Checks that may fail: which, why, who approved it, until when."
    ),
    "app_gates_timeout": Variable("int", 60, "Seconds that all of app_gates may take together."),
    "app_code_gates": Variable("list", [], "Commands that judge the code: tests, linters, scanners."),
    "app_code_gates_timeout": Variable("int", 1800, "Seconds that all of app_code_gates may take together."),
    "app_gate_host": Variable("str", "localhost", "Host that app_code_gates run on."),
    "app_gate_root": Variable(
        "str", "~/.cache/runbook/{name}", "Directory of app_gate_host for their checkout."
    ),
    "app_gate_packages": Variable("list", [], "Packages that app_code_gates need besides the requirements."),
    "app_gate_environment": Variable("dict", {}, "Variables of app_code_gates.", secret=True),
    "app_flags": Variable("dict", {}, "Feature flags: store, flags, stages and all_off."),
    "app_flags_token": Variable("str", "", "Token for the service of the flags.", secret=True),
    "app_rollback_absent": Variable(
        "list", [], "Paths or addresses that must answer 404 or 410 after a rollback."
    ),
    "app_rollback_timeout": Variable("int", 1800, "Seconds that a rollback may take."),
    "app_rollback_policy": Variable(
        "list", [], "Rows that decide which rollback a failure asks for, instead of the collection's own."
    ),
    "app_watch": Variable("dict", {}, "After the switch: how long to watch, how often, what triggers."),
    "app_url": Variable("str", "", "Public address of the application."),
    "app_web_server": Variable("dict", {}, "What setup configures in front: {kind: nginx, listen: 80}."),
    "app_adopt": Variable("dict", {}, "Present installation to take over: path, service, environment_file."),
    "app_batch": Variable("batch", [1, "100%"], "How many hosts are restarted at a time, batch after batch."),
    "app_load_balancer": Variable(
        "dict", {}, "Takes each host out of HAProxy or nginx while it restarts: kind, host, backend."
    ),
    "app_maintenance": Variable(
        "dict",
        {},
        "How visitors are told of a maintenance: kind nginx, file or command, and who is let through.",
    ),
    "app_maintenance_when": Variable(
        "str",
        "migrations",
        "When a deployment or rollback puts the maintenance page on.",
        ("never", "migrations", "always"),
    ),
    "app_maintenance_monitoring": Variable(
        "list", [], "What is called when a maintenance begins and ends: name, begin, end.", secret=True
    ),
    "app_window": Variable(
        "list", [], "When a deployment may begin: days, from, to and zone; always by default."
    ),
    "app_approvals": Variable("list", [], "Roles that have to approve a deployment, each by a name."),
    "app_notifications": Variable(
        "list", [], "Who is told by webhook or mail how a deployment begins and ends.", secret=True
    ),
    "app_staging_proof": Variable(
        "dict", {}, "What staging has to have proved of a commit: store, environment, require, max_age_days."
    ),
    "app_contacts": Variable(
        "list", [], "Whom to call when a deployment went wrong, first to last: role, name, contact."
    ),
    "app_release_tag": Variable(
        "dict", {}, "Tag that the controller pushes after success: name, message, repository, timeout."
    ),
    "app_due_tasks": Variable(
        "list", [], "Tasks that are due after a deployment: name, after or at, command or note."
    ),
    "app_report_store": Variable("path", "", "Directory of the controller that gets records and reports."),
}

DATABASE = {
    "engine": "str",
    "path": "str",
    "shared": "bool",
    "name": "str",
    "host": "str",
    "port": "int",
    "user": "str",
    "password": "str",
    "nontransactional": "str",
    "scratch": "dict",
}
SCRATCH = {"host": "str", "port": "int", "user": "str", "password": "str"}
DATABASE_ADMIN = {"user": "str", "password": "str", "os_user": "str"}
# The keys that each engine has of app_database.
ENGINES = {
    "sqlite": ("engine", "path", "shared"),
    "postgresql": ("engine", "name", "host", "port", "user", "password", "scratch"),
    "mysql": ("engine", "name", "host", "port", "user", "password", "nontransactional", "scratch"),
}
ARCHIVE = {"path": "str", "sha256": "str"}
ADOPT = {"path": "str", "service": "str", "environment_file": "str", "socket": "str"}
# Numbers; how small each may be is said by the watch itself.
WATCH = ("duration", "interval", "initial_delay", "timeout", "failures", "unknowns")
WEB_SERVER = {"kind": "str", "listen": "str", "server_names": "list"}
SERVICE = {
    "name": "str",
    "kind": "str",
    "manager": "str",
    "strategy": "str",
    "bind": "str",
    "port": "int",
    "command": "str",
    "trial": "bool",
    "groups": "list",
    "stop_timeout": "int",
    "celery": "str",
    "drain_timeout": "int",
    "supervisor_config": "str",
    "supervisor_include": "str",
    "compose_project": "str",
    "compose_file": "str",
    "compose_service": "str",
    "image": "str",
}
# Where a supervisord is, as Debian installs it.
SUPERVISOR = {
    "supervisor_config": "/etc/supervisor/supervisord.conf",
    "supervisor_include": "/etc/supervisor/conf.d",
}
COMPOSE = {"compose_project": "", "compose_file": "compose.yaml", "compose_service": "", "image": ""}
SERVICE_CHOICES = {
    "kind": ("web", "worker", "beat"),
    "manager": ("systemd", "supervisor", "compose", "process"),
    "strategy": ("blue_green", "restart", "reload"),
    "bind": ("socket", "port"),
}
