# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a value of the contract with the user, and what follows from the values.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.runbook.deploy.plugins.module_utils._contract_variables import (
    ADOPT,
    ARCHIVE,
    COMPOSE,
    DATABASE,
    DATABASE_ADMIN,
    ENGINES,
    SCRATCH,
    SERVICE,
    SERVICE_CHOICES,
    SUPERVISOR,
    VARIABLES,
    WATCH,
    WEB_SERVER,
)
from ansible_collections.runbook.deploy.plugins.module_utils._layout import SOCKET_PATH_LIMIT, Layout
from ansible_collections.runbook.deploy.plugins.module_utils._policy import check_absent, check_policy
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._rolling import check_balancer, check_batch
from ansible_collections.runbook.deploy.plugins.module_utils._schedulers import check_signals
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import check as check_store

NAME = re.compile(r"^[a-z][a-z0-9-]{0,30}$")
# As long as every deployment id is: the time to the second, and four hex digits.
EXAMPLE_ID = "20260101T000000-0000"
# Who reads a value: a module util and its function, which raises a Problem for what it cannot read.
PARSERS = {
    "app_gates": ("_gates", "parse_gates"),
    "app_gate_waivers": ("_waivers", "parse_waivers"),
    "app_maintenance_monitoring": ("_maintenance_told", "parse_monitoring"),
    "app_notifications": ("_notify_spec", "parse_notifications"),
    "app_window": ("_deploy_window", "parse_windows"),
    "app_approvals": ("_deploy_window", "parse_roles"),
    "app_due_tasks": ("_due", "parse_tasks"),
    "app_staging_proof": ("_staging_proof", "parse_proof"),
    "app_release_tag": ("_release_tag", "parse_tag"),
    "app_contacts": ("_report_story", "parse_contacts"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "int": (int,),
    "bool": (bool,),
    "list": (list, tuple),
    "dict": (Mapping,),
    "batch": (int, str, list, tuple),
}
WORDS = {
    "str": "a text",
    "path": "a path",
    "int": "a whole number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
    "batch": "a number, a share such as 25%, or a list of these",
}


def part(name: str) -> ModuleType:
    """Return the module util *name*, loaded only where a value needs it: ansible-core compiles each in every run, the gates in 0.3 s."""
    return importlib.import_module(f"{__package__}.{name}")


def check_maintenance(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with ``app_maintenance``."""
    if not values["app_maintenance"]:
        return []
    return part("_maintenance_spec").check(
        values["app_maintenance"],
        values["app_maintenance_when"],
        values["app_url"],
        str(values["app_web_server"].get("listen", "")),
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most like *name*, in words for the end of a sentence."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else "docs/variables.md lists those there are."


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Return a sentence for each of *names* that starts with ``app_`` and is not in the contract."""
    return [
        f"{name} is not a variable of the contract: {nearest(name, VARIABLES)}"
        for name in sorted(names)
        if name.startswith("app_") and name not in VARIABLES
    ]


def has_type(value: Any, kind: str) -> bool:
    """Say whether *value* is of the contract's *kind*; a number is no text, true is no number."""
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, TYPES[kind])


def _keys(variable: str, value: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    """Return a sentence for each key of the mapping *value* that is unknown or of another type."""
    errors = []
    for key, found in value.items():
        if key not in kinds:
            errors.append(f"{variable}.{key} is not known: {nearest(str(key), kinds)}")
        elif not has_type(found, kinds[key]):
            errors.append(f"{variable}.{key} must be {WORDS[kinds[key]]}, found {found!r}.")
    return errors


def check_service(index: int, service: Any, root: str) -> list[str]:
    """Return what is wrong with one entry of ``app_services``, a sentence each."""
    variable = f"app_services[{index}]"
    if not isinstance(service, Mapping):
        return [f"{variable} must be a mapping with name and command, found {service!r}."]
    errors = _keys(variable, service, SERVICE)
    for key in ("name",) if service.get("manager") == "compose" else ("name", "command"):
        if not service.get(key):
            errors.append(f"{variable} has no {key}: every service needs one.")
    errors += [
        f"{variable}.{key} must be an absolute path, found {service[key]!r}."
        for key in SUPERVISOR
        if isinstance(service.get(key), str) and not service[key].startswith("/")
    ]
    for key, choices in SERVICE_CHOICES.items():
        if key in service and service[key] not in choices:
            errors.append(f"{variable}.{key} is {service[key]!r}, expected one of {', '.join(choices)}.")
    if errors:
        return errors
    name = service["name"]
    full = complete_service(service)
    if not NAME.match(name):
        errors.append(f"{variable}.name is {name!r}: use lower-case letters, digits and dashes, at most 31.")
    if full["manager"] == "compose":
        return errors + part("_compose_spec").check(variable, service, full)
    errors += [
        f"{variable}.{key} is there, but only manager: compose looks at it: remove it."
        for key in COMPOSE
        if key in service
    ]
    if full["kind"] != "web":
        if service.get("strategy", "restart") != "restart":
            errors.append(
                f"{variable}.strategy is {service['strategy']!r}, which only a web service can have: remove it from this {full['kind']}."
            )
        return errors
    if full["bind"] == "port" and not full["port"]:
        errors.append(f"{variable} binds a port but names none: add port, or bind: socket.")
    if full["bind"] == "port" and full["strategy"] == "blue_green":
        errors.append(
            f"{variable} binds a port, and two instances cannot share one: use bind: socket behind a web server, "
            "or strategy: restart."
        )
    placeholder = "{socket}" if full["bind"] == "socket" else "{port}"
    if placeholder not in full["command"]:
        errors.append(
            f"{variable}.command does not say {placeholder}, so the address that is given to the service would not reach it: "
            f"add it, as in --bind {'unix:{socket}' if full['bind'] == 'socket' else '127.0.0.1:{port}'}."
        )
    length = len(str(Layout(root).socket(name, EXAMPLE_ID)).encode())
    if full["bind"] == "socket" and length > SOCKET_PATH_LIMIT:
        errors.append(
            f"app_root {root!r} is too long: the socket of service {name!r} would have a path of {length} bytes, "
            f"and the kernel takes {SOCKET_PATH_LIMIT}; choose a shorter app_root."
        )
    return errors


def complete_service(service: Mapping[str, Any]) -> dict[str, Any]:
    """Return *service* with every key present: what the roles and modules work with."""
    kind = service.get("kind", "web")
    bind = service.get("bind", "port" if service.get("port") else "socket")
    strategy = "blue_green" if kind == "web" and bind == "socket" else "restart"
    result = {
        "name": service["name"],
        "kind": kind,
        "manager": service.get("manager", "systemd"),
        "strategy": service.get("strategy", strategy),
        "bind": bind if kind == "web" else "none",
        "port": service.get("port", 0),
        "command": service.get("command", ""),
        "trial": service.get("trial", True),
        "groups": list(service.get("groups", [])),
        "stop_timeout": service.get("stop_timeout", 30),
        "celery": service.get("celery"),
        "drain_timeout": service.get("drain_timeout"),
    }
    for manager, keys in (("supervisor", SUPERVISOR), ("compose", COMPOSE)):
        if result["manager"] == manager:
            result.update({key: service.get(key, default) for key, default in keys.items()})
    return result


def check(values: Mapping[str, Any], purpose: str) -> list[str]:
    """Return everything that is wrong with the variables *values*, one sentence each, worst first.

    :param values: the ``app_`` variables of one host, templated; *purpose*: ``deployment`` also needs a version.
    """
    errors = unknown_variables(values)
    for name, variable in VARIABLES.items():
        if name not in values:
            if variable.default is None:
                errors.append(
                    f"{name} is missing: {variable.description} Set it in the inventory's group_vars."
                )
            continue
        value = values[name]
        if not has_type(value, variable.kind):
            shown = "a value of another type" if variable.secret else repr(value)
            # ansible-core reads -e name=value as a text, whatever the value is.
            hint = (
                f"; on the command line it is no text as -e '{{\"{name}\": {value}}}'"
                if variable.kind in ("int", "bool") and isinstance(value, str) and not variable.secret
                else ""
            )
            errors.append(f"{name} must be {WORDS[variable.kind]}, found {shown}{hint}.")
        elif variable.choices and value not in variable.choices:
            errors.append(f"{name} is {value!r}, expected one of {', '.join(variable.choices)}.")
    if errors:
        return errors
    return _check_together({**defaults(values), **values}, purpose)


def _check_together(values: Mapping[str, Any], purpose: str) -> list[str]:
    """Return what is wrong with variables that are well-formed one by one."""
    errors = []
    for name in ("app_name", "app_stage"):
        if not NAME.match(values[name]):
            errors.append(
                f"{name} is {values[name]!r}: use lower-case letters, digits and dashes, at most 31."
            )
    root = values["app_root"]
    if not root.startswith("/") or root.rstrip("/").count("/") < 2:
        errors.append(
            f"app_root is {root!r}: give an absolute path of at least two levels, such as /srv/{values['app_name']}."
        )
    if not values["app_services"]:
        errors.append("app_services is empty: name at least one service with its command.")
    for index, service in enumerate(values["app_services"]):
        errors += check_service(index, service, root)
    names = [service.get("name") for service in values["app_services"] if isinstance(service, Mapping)]
    errors += [
        f"app_services names {name!r} twice."
        for name in sorted({n for n in names if n and names.count(n) > 1})
    ]
    errors += _check_source(values, purpose)
    errors += _check_database(values)
    errors += check_store(values["app_backup_store"])
    errors += check_batch(values["app_batch"]) + check_balancer(values["app_load_balancer"])
    errors += check_maintenance(values)
    errors += _keys("app_adopt", values["app_adopt"], ADOPT)
    if values["app_adopt"] and not values["app_adopt"].get("service"):
        errors.append("app_adopt has no service: name the unit that runs the application today.")
    for key, value in values["app_watch"].items():
        if key not in WATCH:
            errors.append(f"app_watch.{key} is not known: {nearest(str(key), WATCH)}")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            errors.append(f"app_watch.{key} must be a number of at least 0, found {value!r}.")
    errors += _keys(
        "app_web_server",
        {k: str(v) if k == "listen" else v for k, v in values["app_web_server"].items()},
        WEB_SERVER,
    )
    if values["app_framework"] == "django" and not values["app_settings_module"]:
        errors.append(
            "app_settings_module is missing: app_framework is django, so give the module, such as shop.settings."
        )
    if (values["app_framework"] == "command") != bool(values["app_migrate_command"]):
        errors.append(
            "app_migrate_command and app_framework: command belong together: give the command that initialises the database, "
            "as a list of words, or remove it."
        )
    if values["app_flags"]:
        # Only here: every run would pay for the import.
        from ansible_collections.runbook.deploy.plugins.module_utils._flags_spec import check_flags

        errors += check_flags(values["app_flags"], [name for name in names if name])
    reloaded = (values["app_flags"].get("store") or {}).get("reload")
    errors += [
        f"app_flags.store.reload is {reloaded!r}, a container, which reads its variables only when it is made: remove it."
        for service in values["app_services"]
        if reloaded and service.get("name") == reloaded and service.get("manager") == "compose"
    ]
    errors += check_signals(values["app_environment"])
    errors += check_policy(values["app_rollback_policy"])
    errors += check_absent(values["app_rollback_absent"], values["app_url"])
    for name, (module, function) in PARSERS.items():
        try:
            if values[name]:
                getattr(part(module), function)(values[name], name)
        except Problem as problem:
            errors.append(problem.message)
    for name in (
        "app_environment",
        "app_build_environment",
        "app_smoke_secrets",
        "app_gate_environment",
        "app_migrate_command_environment",
    ):
        for key, value in values[name].items():
            if isinstance(value, (Mapping, list, tuple)) or value is None:
                errors.append(f"{name}.{key} must be a text or a number, found {type(value).__name__}.")
    for path in values["app_shared"]:
        if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/"):
            errors.append(
                f"app_shared holds {path!r}: paths are relative to the application's directory, without '..'."
            )
    if values["app_url"] and not urlsplit(values["app_url"]).hostname:
        errors.append(
            f"app_url is {values['app_url']!r}: give an address with scheme and host, such as https://shop.example.org."
        )
    return errors


def _check_source(values: Mapping[str, Any], purpose: str) -> list[str]:
    """Return what is wrong with where the code comes from."""
    errors = _keys("app_archive", values["app_archive"], ARCHIVE)
    if not values["app_repository"] and not values["app_archive"]:
        errors.append(
            "app_repository is missing: give the git repository, or app_archive with path and sha256."
        )
    if values["app_repository"] and values["app_archive"]:
        errors.append(
            "app_repository and app_archive are both given, and the code comes from one of them: remove the other."
        )
    if values["app_archive"] and not (
        values["app_archive"].get("path") and values["app_archive"].get("sha256")
    ):
        errors.append("app_archive needs path and sha256, so that what is deployed is what was meant.")
    if values["app_release_tag"] and values["app_archive"]:
        errors.append(
            "app_release_tag and app_archive are both given, but an archive has no commit that could be tagged: remove app_release_tag."
        )
    if values["app_repository_key"] and not values["app_repository_known_hosts"]:
        errors.append(
            "app_repository_known_hosts is missing: with app_repository_key the server's host key must be known."
        )
    if purpose == "deployment" and not values["app_archive"] and not values["app_version"]:
        errors.append(
            "app_version is missing: name the tag, branch or commit to deploy, as in -e version=v2.7."
        )
    if values["app_version"].startswith("-"):
        errors.append(f"app_version is {values['app_version']!r}: a version does not start with a dash.")
    return errors


def _check_database(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with ``app_database``; a database inside a release would be new with each of them."""
    database = values["app_database"]
    errors = _keys("app_database", database, DATABASE)
    if not errors:
        errors += _keys("app_database.scratch", database.get("scratch") or {}, SCRATCH)
    errors += _keys("app_database_admin", values["app_database_admin"], DATABASE_ADMIN)
    if not database:
        if values["app_framework"] != "none":
            errors.append("app_database is missing: give engine and path or name, or app_framework: none.")
        return errors
    engine = database.get("engine")
    if engine not in ENGINES:
        errors.append(f"app_database.engine is {engine!r}, expected one of {', '.join(ENGINES)}.")
    elif not errors:
        errors += [
            f"app_database.{key} is no key of the engine {engine}, which has {', '.join(ENGINES[engine])}: remove it."
            for key in database
            if key not in ENGINES[engine]
        ]
    if engine != "sqlite":
        if engine in ENGINES and not database.get("name"):
            errors.append(
                f"app_database.name is missing: name the application's database on the {engine} server."
            )
        return errors
    path = database.get("path", "")
    layout = Layout(values["app_root"])
    if not path.startswith("/"):
        errors.append(f"app_database.path is {path!r}: give the absolute path of the database file.")
    for place in (layout.releases, layout.current):
        if path.startswith(f"{place}/"):
            errors.append(
                f"app_database.path is {path!r}, inside a release: the next release would start with an empty database; "
                f"move it below {layout.shared} and point the application's settings there."
            )
    return errors


def defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of every variable that *values* leaves out."""
    name = str(values.get("app_name", ""))
    result = {}
    for variable, spec in VARIABLES.items():
        if variable not in values and spec.default is not None:
            text = isinstance(spec.default, str)
            result[variable] = spec.default.replace("{name}", name) if text else spec.default
    return result


# What makes another release of the same commit: it runs differently, or is built differently.
INPUTS = (
    "app_environment",
    "app_settings_module",
    "app_framework",
    "app_directory",
    "app_python",
    "app_requirements",
    "app_constraints",
    "app_packages",
    "app_shared",
    "app_services",
    "app_collectstatic_commands_before",
    "app_collectstatic_commands_after",
)


def inputs_digest(values: Mapping[str, Any]) -> str:
    """Return eight hex digits that change with anything a release is made from besides its commit.

    Eight digits, so that the secrets among the inputs cannot be confirmed from a directory's name.
    """
    text = json.dumps({name: values[name] for name in INPUTS}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def services_of(values: Mapping[str, Any], groups: Iterable[str]) -> list[dict[str, Any]]:
    """Return the services of a host that is in *groups*: those that name none, or one of them."""
    mine = set(groups)
    services = [complete_service(service) for service in values["app_services"]]
    return [service for service in services if not service["groups"] or mine & set(service["groups"])]


def health_host(values: Mapping[str, Any]) -> str:
    """Return the Host header for health checks."""
    return values["app_health_host"] or urlsplit(values["app_url"]).hostname or "localhost"


def require(values: Mapping[str, Any], purpose: str) -> None:
    """Raise a Problem that lists everything :func:`check` finds.

    :raises Problem: with one sentence a line.
    """
    errors = check(values, purpose)
    if errors:
        raise Problem("\n".join(errors))
