# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operations inside a Django application: start, settings, verify, inert, collectstatic.

Runs in the application's Python (3.8 and up, Django 3.2 and up), loaded by ``_agent_runtime.py``; imports nothing of
the collection, and Django only inside functions. Facts are collected here; they are judged on the host.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import weakref
from typing import Any

# The level from which `manage.py check` fails (django.core.checks.ERROR).
ERROR = 40
# Where the classes of storages are of which it is known what they write (and what all classes derive from).
KNOWN_STORAGES = ("builtins.", "django.", "whitenoise.")
# What a storage does more in that writes more than files: the methods that collectstatic calls to write and to process.
STORAGE_WRITES = ("save", "_save", "delete", "post_process", "_post_process", "save_manifest")


class AgentRefusal(Exception):
    """Something that must not go on; its text is the sentence for the operator."""


# --- start ---


def start(context: Any, argv: list[str], database: dict[str, Any] | None = None) -> Any:
    """Set Django up as ``manage.py`` does: by running it, up to the place where it would run its command.

    A project's ``manage.py`` may read a file of variables, extend the path of modules or install an importer, and
    names the settings; all of that counts. Without a ``manage.py`` Django is set up directly.

    :param argv: what ``sys.argv`` is to be, as some settings look at it.
    :param database: the scratch database that replaces the default one, as ``_agent_scratch.point_to_scratch``
        takes it; None: the live one.
    """
    sys.argv = list(argv)
    if not os.path.isfile("manage.py"):
        return _setup(context, database)
    from django.core.management import ManagementUtility

    original = ManagementUtility.execute
    reached: list[bool] = []

    def execute(_utility: Any) -> None:
        ManagementUtility.execute = original
        reached.append(True)
        context.reply(lambda: _setup(context, database))
        context.serve()

    ManagementUtility.execute = execute
    try:
        runpy.run_path("manage.py", run_name="__main__")
    except BaseException:
        # After the first request was answered, whatever manage.py does in its own end is of no interest.
        if not reached:
            raise
    finally:
        ManagementUtility.execute = original
    if not reached:
        raise AgentRefusal("manage.py ended without running a command of Django")
    return _answered()


def _answered() -> Any:
    return sys.modules["_runbook_runtime"].ANSWERED


def _setup(context: Any, database: dict[str, Any] | None) -> dict[str, Any]:
    import django
    from django.conf import settings

    if not os.environ.get("DJANGO_SETTINGS_MODULE") and not settings.configured:
        raise AgentRefusal(
            "no settings module is named, neither by manage.py nor by a variable: set app_settings_module"
        )
    configured = settings.DATABASES
    scratch = sys.modules["_runbook_scratch"]
    live = scratch.described(configured.get("default") or {})
    disabled: list[str] = []
    if database:
        disabled = scratch.point_to_scratch(context, configured, database)
    django.setup()
    from django.db import connections

    context.memory["alias"] = "default"
    answer = {
        "django": django.get_version(),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "settings": os.environ.get("DJANGO_SETTINGS_MODULE", ""),
        "database": live,
        "disabled": disabled,
        "vendor": connections["default"].vendor,
    }
    if database:
        scratch.prove_scratch(context, connections, database)
    return answer


# --- settings ---


def settings_facts(context: Any) -> dict[str, Any]:
    """Return what the static files phase needs to know, nothing secret."""
    from django.apps import apps
    from django.conf import settings

    del context
    answer: dict[str, Any] = {
        "staticfiles": apps.is_installed("django.contrib.staticfiles"),
        "static_root": str(settings.STATIC_ROOT or ""),
        "static_url": str(settings.STATIC_URL or ""),
        "media_root": str(settings.MEDIA_ROOT or ""),
        "storage": "",
        "local": False,
        "plain": False,
        "location": "",
        "manifest": "",
        "databases": {
            alias: sys.modules["_runbook_scratch"].described(entry)
            for alias, entry in settings.DATABASES.items()
        },
    }
    if answer["staticfiles"] and not answer["static_root"] and _collects_into_directory(settings):
        # The storage itself would refuse to exist without a STATIC_ROOT.
        answer["local"] = True
    elif answer["staticfiles"]:
        from django.contrib.staticfiles.storage import staticfiles_storage
        from django.core.files.storage import FileSystemStorage

        # The lazy object answers with the class of the storage that it stands for; no request is made.
        kind = staticfiles_storage.__class__
        answer["storage"] = f"{kind.__module__}.{kind.__name__}"
        answer["local"] = isinstance(staticfiles_storage, FileSystemStorage)
        if answer["local"]:
            answer["location"] = str(staticfiles_storage.location or "")
            answer["plain"] = _collects_files_only(kind)
        answer["manifest"] = str(getattr(staticfiles_storage, "manifest_name", "") or "")
    return answer


def _collects_files_only(storage: type) -> bool:
    """Return whether ``collectstatic`` writes files and does nothing else, such as sending them somewhere.

    Django's command, with a storage of Django or WhiteNoise, or one derived from it that leaves their writing as it is.
    """
    from django.core.management import get_commands

    derived = [kind for kind in storage.__mro__ if not f"{kind.__module__}.".startswith(KNOWN_STORAGES)]
    writes = any(name in vars(kind) for kind in derived for name in STORAGE_WRITES)
    return not writes and get_commands().get("collectstatic") == "django.contrib.staticfiles"


def _collects_into_directory(settings: Any) -> bool:
    """Return whether the storage of static files is one of Django's, or derived from it."""
    from django.contrib.staticfiles.storage import StaticFilesStorage
    from django.utils.module_loading import import_string

    storages = getattr(settings, "STORAGES", None) or {}
    path = (storages.get("staticfiles") or {}).get("BACKEND") or getattr(settings, "STATICFILES_STORAGE", "")
    return bool(path) and issubclass(import_string(path), StaticFilesStorage)


# --- verify ---


def verify(context: Any, import_modules: list[str], release: str) -> dict[str, Any]:
    """Return what `check`, `check --deploy` and `makemigrations --check` find.

    :param import_modules: modules to import besides, such as the WSGI module.
    :param release: directory of the release; a model change in an application below it is the project's own.
    """
    from django.core.checks import registry as checks

    registry = checks.registry
    ordinary: list[Any] = []
    for check in list(registry.registered_checks):
        ordinary.extend(check(app_configs=None, databases=[context.memory["alias"]]))
    deploy: list[Any] = []
    for check in list(registry.deployment_checks):
        deploy.extend(check(app_configs=None, databases=None))
    failures = []
    for name in import_modules:
        try:
            importlib.import_module(name)
        except BaseException as error:
            describe = sys.modules["_runbook_runtime"].describe_error
            failures.append({"module": name, **describe(error)})
    return {
        "checks": [_message(message) for message in ordinary if not message.is_silenced()],
        "deploy": [_message(message) for message in deploy if not message.is_silenced()],
        "missing": _missing_migrations(release),
        "imports": failures,
    }


def _message(message: Any) -> dict[str, Any]:
    return {
        "id": message.id or "",
        "level": message.level,
        "error": message.level >= ERROR,
        "message": str(message.msg),
        "hint": str(message.hint or ""),
        "object": "" if message.obj is None else str(getattr(message.obj, "_meta", message.obj)),
    }


def _missing_migrations(release: str) -> list[dict[str, Any]]:
    """Return the model changes without a migration, each ``{app, own, changes}``; asks nobody, writes nothing."""
    from django.apps import apps
    from django.core.management import get_commands, load_command_class
    from django.db.migrations.autodetector import MigrationAutodetector
    from django.db.migrations.loader import MigrationLoader
    from django.db.migrations.questioner import MigrationQuestioner
    from django.db.migrations.state import ProjectState

    provider = get_commands().get("makemigrations", "django.core")
    command = provider if not isinstance(provider, str) else load_command_class(provider, "makemigrations")
    detector_class = getattr(command, "autodetector", MigrationAutodetector)
    loader = MigrationLoader(None, ignore_no_migrations=True)
    if loader.detect_conflicts():
        return []
    detector = detector_class(
        loader.project_state(),
        ProjectState.from_apps(apps),
        # The plain one: the one for people would ask, and the one that does not ask would exit.
        MigrationQuestioner(specified_apps=[], dry_run=True),
    )
    below = os.path.join(os.path.realpath(release), "")
    found = []
    for label, changes in sorted(detector.changes(graph=loader.graph).items()):
        own = os.path.realpath(apps.get_app_config(label).path).startswith(below)
        texts = [operation.describe() for migration in changes for operation in migration.operations]
        found.append({"app": label, "own": own, "changes": texts})
    return found


def inert(context: Any) -> dict[str, Any]:
    """Return ``{inert}``: whether ``migrate`` does nothing at all while no migration is pending.

    Even then it sends its signals. Django's own receivers add content types and permissions, for which there is nothing new
    while no model changed, and a model of an app with migrations changes by a migration. Anything else may do anything: a
    command of the project's own, another receiver, an app that has models and no migrations.
    """
    from django.apps import apps
    from django.core.management import get_commands
    from django.db.migrations.loader import MigrationLoader
    from django.db.models.signals import post_migrate, pre_migrate
    from django.utils.module_loading import module_has_submodule

    del context
    if get_commands().get("migrate", "django.core") != "django.core":
        return {"inert": False}
    for app_config in apps.get_app_configs():
        # As migrate does it, because receivers are registered there.
        if module_has_submodule(app_config.module, "management"):
            importlib.import_module(".management", app_config.name)
    receivers = [entry[1] for signal in (pre_migrate, post_migrate) for entry in signal.receivers]
    without = MigrationLoader(None, ignore_no_migrations=True).unmigrated_apps
    return {
        "inert": all(_is_djangos(receiver) for receiver in receivers)
        and not any(list(apps.get_app_config(label).get_models()) for label in without)
    }


def _is_djangos(receiver: Any) -> bool:
    """Return whether *receiver*, which a signal may hold by a weak reference, is a function of Django's."""
    found = receiver() if isinstance(receiver, weakref.ref) else receiver
    return found is None or str(getattr(found, "__module__", "")).startswith("django.")


# --- collectstatic ---


def collectstatic(context: Any) -> dict[str, Any]:
    """Run the project's own ``collectstatic``, never with ``--clear``; return how many files went where."""
    from django.core.management import call_command, get_commands, load_command_class

    del context
    provider = get_commands()["collectstatic"]
    command = provider if not isinstance(provider, str) else load_command_class(provider, "collectstatic")
    reports: list[dict[str, Any]] = []
    collect = getattr(command, "collect", None)
    if collect is not None:

        def recorded() -> Any:
            report = collect()
            reports.append(report)
            return report

        command.collect = recorded
    call_command(command, interactive=False, verbosity=1)
    report = reports[-1] if reports else {}
    return {
        "copied": len(report.get("modified") or []),
        "unmodified": len(report.get("unmodified") or []),
        "post_processed": len(report.get("post_processed") or []),
    }


OPERATIONS = {
    "start": start,
    "settings": settings_facts,
    "verify": verify,
    "inert": inert,
    "collectstatic": collectstatic,
}
