# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gates of several kinds, asked at the same time as one gate.

Each item of ``app_gates`` is a check of one kind, with ``kind`` (``host`` by default), ``moments`` (when it is asked) and
``where`` (on which hosts) besides.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ansible_collections.runbook.deploy.plugins.module_utils import (
    _celery_gate,
    _command_gate,
    _gates_before,
    _host_gate,
    _http_gate,
    _log_gate,
    _metrics_gate,
    _service_gate,
    _sql_gate,
    _websocket_gate,
)
from ansible_collections.runbook.deploy.plugins.module_utils._application import RELEASE_OPTIONS, installed
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment, secret
from ansible_collections.runbook.deploy.plugins.module_utils._database import OPTIONAL_DATABASE
from ansible_collections.runbook.deploy.plugins.module_utils._gate import INCONCLUSIVE, check_result
from ansible_collections.runbook.deploy.plugins.module_utils._gate_spec import nearest
from ansible_collections.runbook.deploy.plugins.module_utils._gating import GATE_OPTIONS, Probe, conduct
from ansible_collections.runbook.deploy.plugins.module_utils._layout import Layout, current_release
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem

Ask = Callable[[float], Sequence[dict[str, Any]]]
MOMENTS = ("preflight", "smoke_test", "watch", "rollback")
PLACES = ("all", "primary")
# Each has OPTIONS and prober(options, check_mode), as docs/internals.md says.
KINDS: dict[str, ModuleType] = {
    "celery": _celery_gate,
    "command": _command_gate,
    "host": _host_gate,
    "http": _http_gate,
    "log": _log_gate,
    "metrics": _metrics_gate,
    "service": _service_gate,
    "sql": _sql_gate,
    "websocket": _websocket_gate,
}
# What is true of a host is asked on each before anything begins; what is true of the application once, when it runs.
DEFAULTS: dict[str, tuple[tuple[str, ...], str]] = {"host": (("preflight",), "all")}
OTHERS = (("smoke_test",), "primary")
# What a kind finds in the options of the module, and not in its checks.
SHARED: dict[str, Any] = {
    "environment": {"type": "str", "no_log": True},
    "controller_time": {"type": "float"},
    "ca_path": {"type": "path"},
    "repository": {"type": "path"},
    "commit": {"type": "str"},
    "root": {"type": "path"},
    "user": {"type": "str"},
    "settings_module": {"type": "str", "default": ""},
    "database": OPTIONAL_DATABASE,
    "address": {"type": "str"},
    "placeholders": {"type": "dict", "default": {}},
    "secrets": {"type": "str", "no_log": True},
}
OPTIONS: dict[str, Any] = {
    **GATE_OPTIONS,
    "gates": {"type": "list", "elements": "dict", "required": True},
    "moment": {"type": "str", "choices": list(MOMENTS), "required": True},
    "primary": {"type": "bool", "default": True},
    "before": {"type": "dict", "default": {}},
    **SHARED,
}
RULES: dict[str, Any] = {}


class Item(NamedTuple):
    """One entry of ``app_gates``: its kind, when and where it is asked, the check itself, and what its kind reads of it."""

    kind: str
    moments: tuple[str, ...]
    where: str
    check: dict[str, Any]
    parsed: Any = None

    def compares(self) -> bool:
        """Return whether something is remembered of it before the deployment, for a later moment."""
        later = any(moment in ("smoke_test", "watch") for moment in self.moments)
        return later and _gates_before.compares(self.kind, self.parsed)


def parse_item(item: Any, where: str) -> Item:
    """Return one entry read; its check is read by its kind.

    :raises Problem: for a kind, a moment or a place that does not exist.
    """
    if not isinstance(item, Mapping):
        raise Problem(f"{where} must be a mapping such as {{disk: /srv, free: '> 2GB'}}, found {item!r}.")
    kind = str(item.get("kind", "host"))
    if kind not in KINDS:
        raise Problem(f"{where}.kind is {kind!r}{nearest(kind, list(KINDS))}")
    moments, place = DEFAULTS.get(kind, OTHERS)
    given = item.get("moments", list(moments))
    given = given if isinstance(given, list) else [given]
    for moment in given:
        if moment not in MOMENTS:
            raise Problem(f"{where}.moments must be some of {', '.join(MOMENTS)}, found {moment!r}.")
    if not given:
        raise Problem(f"{where}.moments is empty: the gate would never be asked.")
    place = item.get("where", place)
    if place not in PLACES:
        raise Problem(f"{where}.where must be one of {', '.join(PLACES)}, found {place!r}.")
    check = {key: value for key, value in item.items() if key not in ("kind", "moments", "where")}
    return Item(kind, tuple(given), place, check)


def parse_gates(gates: Sequence[Any], where: str = "gates") -> list[Item]:
    """Return the entries read, each check by its own kind, so that a typing error is found on the controller.

    :raises Problem: for the first that is not well written, or a name that two of them have.
    """
    items = [parse_item(item, f"{where}[{index}]") for index, item in enumerate(gates)]
    names: dict[str, int] = {}
    for index, item in enumerate(items):
        name = str(item.check.get("name") or "")
        if name and names.setdefault(name, index) != index:
            raise Problem(
                f"{where}[{index}].name {name!r} is that of {where}[{names[name]}], too: a waiver could mean either."
            )
        parsed = KINDS[item.kind].parse_check(item.check, f"{where}[{index}]")
        _gates_before.verify(item.kind, parsed, item.moments, f"{where}[{index}]")
        if "rollback" in item.moments and _gates_before.compares(item.kind, parsed):
            raise Problem(
                f"{where}[{index}].moments has rollback, but it is compared with what was before the deployment, which a rollback "
                "does not know: use smoke_test or watch."
            )
        items[index] = item._replace(parsed=parsed)
    compared: set[str] = set()
    for index, item in enumerate(items):
        if item.compares():
            if item.parsed.name in compared:
                raise Problem(
                    f"{where}[{index}] is called {item.parsed.name!r} as another one: give it a name of its own, "
                    "by which it is compared with what was before."
                )
            compared.add(item.parsed.name)
    return items


def chosen(items: Sequence[Item], moment: str, primary: bool) -> list[Item]:
    """Return the entries that are asked at *moment* on this host; *primary*: it is the primary."""
    return [item for item in items if moment in item.moments and (primary or item.where == "all")]


def remembers(items: Sequence[Item], moment: str, primary: bool) -> list[Item]:
    """Return the entries of which something is remembered now; they are judged later, and on the primary."""
    return [item for item in items if moment == "preflight" and primary and item.compares()]


def prober(options: Mapping[str, Any], check_mode: bool) -> Probe:
    """Return what asks all entries of *options* that are for this moment and host, all kinds at the same time.

    At the moment ``preflight`` it remembers besides what later ones compare with; see ``_gates_before``.

    :raises Problem: when one is not well written.
    """
    every = parse_gates(options["gates"])
    verify_names(every, options)
    items = chosen(every, options["moment"], options["primary"])
    before = _gates_before.read(options.get("before"))
    # Of a watch, which asks again and again: one sample in each round, and a deadline for each.
    again = options["moment"] == "watch"
    probes: list[Ask] = []
    left_out: list[str] = []
    for kind, module in KINDS.items():
        own = [item for item in items if item.kind == kind]
        checks = [item.check for item in own]
        if kind == "metrics" and before.first:
            others = [_gates_before.reduced(check, False) for check in checks]
            left_out += [item.parsed.name for item, other in zip(own, others) if other is None]
            checks = [other for other in others if other is not None]
        if not checks:
            continue
        given = {**options_of(kind, options), "checks": checks}
        if kind == "log":
            given["cursors"] = before.cursors
        if kind == "metrics":
            given["baseline"] = before.measured
        if again and kind == "command":
            probes.append(anew(module, given, check_mode))
        elif kind == "http":
            probes.append(_gates_before.told(module.prober(given, check_mode), checks, before))
        else:
            probes.append(module.prober(given, check_mode))
    wanted = [
        (item.kind, item.check)
        for item in remembers(every, options["moment"], options["primary"])
        if item not in items
    ]
    probes += _gates_before.probes(
        wanted, lambda kind: options_of(kind, options), check_mode, nothing_live(options)
    )
    return together(probes, left_out)


def nothing_live(options: Mapping[str, Any]) -> bool:
    """Return whether this is a first deployment."""
    return bool(options["root"]) and not current_release(Layout(options["root"]))


def options_of(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of *kind*, without its checks, from those of this module.

    :raises Problem: when commands are asked for and no release is current.
    """
    own = {name: spec.get("default") for name, spec in KINDS[kind].OPTIONS.items()}
    shared = {name: options[name] for name in SHARED if name in own}
    if kind == "command" or (kind == "metrics" and options["root"]):
        shared.update(in_release(options, required=kind == "command"))
    again = options["moment"] == "watch"
    shared["deadline"] = (options.get("timeout") if again else None) or options["deadline"]
    if kind in ("metrics", "log"):
        shared["accumulate"] = again
    if kind == "log":
        # An application may log whatever it knows; what stands in the gates themselves is no secret.
        values = parse_environment(options["environment"], "environment").values()
        concealed = secret(values, [json.dumps(options["gates"], ensure_ascii=False, default=str)])
        named = {f"ENVIRONMENT_{index}": value for index, value in enumerate(concealed)}
        shared["secrets"] = json.dumps({**named, **parse_environment(options["secrets"], "secrets")})
    return {**own, **shared}


def verify_names(items: Sequence[Item], options: Mapping[str, Any]) -> None:
    """Refuse, at whatever moment, what could only be found out when the new release serves already.

    :raises Problem: when it is not known what an application of Celery is called.
    """
    celery = [item for item in items if item.kind == "celery"]
    if celery:
        given = {**options_of("celery", options), "checks": [item.check for item in celery]}
        _celery_gate.prober({**given, "root": given["root"] or "/"}, True)


def anew(module: ModuleType, given: Mapping[str, Any], check_mode: bool) -> Probe:
    """Return a probe that is made for each call: a command that failed is run again, which a gate of one moment does not do.

    :raises Problem: when a check is not well written.
    """
    first = module.prober(given, check_mode)

    def probe(left: float) -> Sequence[dict[str, Any]]:
        found: Sequence[dict[str, Any]] = module.prober(given, check_mode)(left)
        return found

    return Probe(probe, getattr(first, "not_asked", ()), getattr(first, "anything", True))


def in_release(options: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    """Return how commands are run in the release that is current, as the application's own are.

    :param required: False: {} where no release is current.
    :return: ``chdir``, ``user`` and ``environment`` (a JSON object in one string).
    :raises Problem: when no release is current.
    """
    release = current_release(Layout(options["root"])) if options["root"] else None
    if not release and not required:
        return {}
    if not release:
        raise Problem(
            f"No release is current in {options['root']!r}, and commands of app_gates run in it: ask them after the switch "
            "(moments: [smoke_test])."
        )
    own = {name: spec.get("default", "") for name, spec in RELEASE_OPTIONS.items()}
    given = {name: options[name] for name in ("root", "user", "environment", "settings_module")}
    found = installed({**own, "record": None, **given, "release": release})
    return {"chdir": str(found.cwd), "user": options["user"], "environment": json.dumps(found.variables)}


def together(probes: Sequence[Ask], left_out: Sequence[str] = ()) -> Probe:
    """Return one probe that asks all *probes* at once and answers all their checks, in their order.

    :param left_out: names of checks that nobody asks, besides those that *probes* name in ``not_asked``.
    """
    import concurrent.futures  # loads multiprocessing, which a host with nothing to ask does not need

    def probe(left: float) -> list[dict[str, Any]]:
        limit = time.monotonic() + left
        if len(probes) == 1:
            return list(probes[0](left))
        pool = concurrent.futures.ThreadPoolExecutor(max(1, len(probes)))
        try:
            asked = [pool.submit(one, left) for one in probes]
            found: list[dict[str, Any]] = []
            for future in asked:
                try:
                    found += future.result(max(0.0, limit - time.monotonic()) + 0.4)
                except concurrent.futures.TimeoutError:
                    found.append(
                        check_result(
                            "probe",
                            INCONCLUSIVE,
                            observed="no result in time",
                            expected="a result in time",
                            message=f"A gate did not end within {left:.1f} s: look at what it waits for.",
                        )
                    )
            return found
        finally:
            pool.shutdown(wait=False)

    not_asked = [*left_out, *(name for one in probes for name in getattr(one, "not_asked", ()))]
    return Probe(probe, not_asked, any(getattr(one, "anything", True) for one in probes))


def perform(options: Mapping[str, Any], check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Run the gates that *options* (see ``OPTIONS``) describe and return them as one gate.

    :return: the gate with ``before``, or one with ``checks`` empty and ``passed`` where nothing is to be asked at this moment here.
    :raises Problem: when it does not pass, or an option is wrong.
    """
    items = parse_gates(options["gates"])
    verify_names(items, options)
    compared = remembers(items, options["moment"], options["primary"])
    names = [(item.kind, item.parsed.name) for item in compared]
    first = nothing_live(options)
    if not chosen(items, options["moment"], options["primary"]) and not (
        any(kind == "log" for kind, _name in names) if first else compared
    ):
        return {
            "passed": True,
            "verdict": "pass",
            "checks": [],
            "failing": [],
            "degraded": [],
            "attempts": 0,
            "streak": 0,
            "seconds": 0.0,
            "reason": "Nothing is to be asked here at this moment.",
            "not_asked": [],
            "before": _gates_before.remembered([], names, first),
        }
    secrets = [*parse_environment(options["environment"], "environment").values()]
    secrets += parse_environment(options["secrets"], "secrets").values()
    secrets += filter(None, [(options["database"] or {}).get("password")])
    gate = conduct(
        options, prober(options, check_mode), "this host", check_mode=check_mode, warn=warn, secrets=secrets
    )
    return {**gate, "before": _gates_before.remembered(gate["checks"], names, first)}
