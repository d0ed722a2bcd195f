# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random chains of migrations, made in memory against the state before; for ``plan_trials.py``, which runs them."""

from __future__ import annotations

import random
import re
from typing import Any

import django

APP = "chain"
# What an operation may be, the more often the likelier.
KINDS = (
    *("create", "delete", "table", "options", "python", "sql", "noop"),
    *("add", "add", "add", "add", "remove", "remove", "alter", "alter", "alter", "alter"),
    *("rename_field", "rename_model", "index", "unindex"),
    *("constrain", "constrain", "unconstrain", "together", "together"),
)


class Author:
    """Makes up operations that are valid in the present state of a chain."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0

    def name(self, prefix: str) -> str:
        """Return a name that was never used."""
        self.count += 1
        return f"{prefix}{self.count}"

    def field(self, others: list[str]) -> Any:
        """Return a field of any kind; *others*: models that it may point to."""
        from django.db import models

        integer = self.random.choice(
            (
                models.SmallIntegerField,
                models.IntegerField,
                models.BigIntegerField,
                models.PositiveIntegerField,
            )
        )
        choices = [
            lambda: integer(null=True),
            lambda: integer(default=3),
            lambda: integer(db_default=4),
            lambda: integer(null=True, unique=True),
            lambda: integer(db_default=5, unique=True),
            lambda: integer(null=True, default=7, db_index=True),
            lambda: models.CharField(max_length=self.random.choice((10, 20, 40)), null=True),
            lambda: models.CharField(max_length=20, default="d"),
            lambda: models.CharField(max_length=20, default="", blank=True, db_index=True),
            lambda: models.TextField(null=True),
            lambda: models.TextField(default="t"),
            lambda: models.BooleanField(default=True),
            lambda: models.DateTimeField(null=True),
            lambda: models.DecimalField(max_digits=6, decimal_places=2, null=True),
            lambda: models.ForeignKey(f"{APP}.{self.random.choice(others)}", models.CASCADE, null=True),
            lambda: models.OneToOneField(
                f"{APP}.{self.random.choice(others)}", models.CASCADE, null=True, related_name="+"
            ),
            lambda: models.ManyToManyField(f"{APP}.{self.random.choice(others)}", related_name="+"),
        ]
        return self.random.choice(choices)()

    def altered(self, field: Any) -> Any:
        """Return a changed copy of *field*, or None where nothing is to be changed."""
        from django.db import models

        if field.primary_key or field.is_relation:
            return None
        _name, _path, arguments, options = field.deconstruct()
        changes = ["null", "null", "unique", "db_index", "default", "db_default", "db_default"]
        if isinstance(field, models.CharField):
            changes += ["max_length"] * 3 + ["text"]
        if isinstance(field, (models.SmallIntegerField, models.IntegerField)):
            changes += ["bigger"] * 2
        kind = type(field)
        for change in sorted(set(self.random.sample(changes, self.random.choice((1, 1, 2))))):
            if change in ("null", "unique", "db_index"):
                options[change] = not options.get(change, False)
            elif change == "default":
                options["default"] = None if options.get("null") else _plain(field, 8)
                if options["default"] is None:
                    options.pop("default")
            elif change == "db_default":
                if "db_default" in options:
                    options.pop("db_default")
                else:
                    options["db_default"] = _plain(field, 9)
            elif change == "max_length":
                options["max_length"] = self.random.choice((5, 10, 20, 60))
            elif change == "text":
                kind = models.TextField
                options.pop("max_length", None)
            else:
                kind = models.BigIntegerField
        if options.get("db_default", 1) is None:
            options.pop("db_default")
        return kind(*arguments, **options)

    def operations(self, state: Any) -> list[Any]:
        """Return one to three operations, each valid after the one before."""
        made = []
        state = state.clone()
        for _number in range(self.random.choice((1, 1, 2, 3))):
            operation = None
            while operation is None:
                operation = self.operation(state)
            operation.state_forwards(APP, state)
            made.append(operation)
        return made

    def operation(self, state: Any) -> Any:
        """Return an operation that is valid in *state*, or None to try again."""
        from django.db import migrations, models

        found = {key[1]: model for key, model in state.models.items() if key[0] == APP}
        model = self.random.choice(sorted(found))
        about = found[model]
        used = _used(about)
        fields = {name: field for name, field in about.fields.items() if name != "id"}
        free = sorted(name for name in fields if name not in used)
        plain = sorted(name for name, field in fields.items() if not field.is_relation)
        kind = self.random.choice(KINDS)
        if kind == "create":
            columns = [
                ("id", models.BigAutoField(primary_key=True)),
                ("label", models.CharField(max_length=10)),
            ]
            columns += [(self.name("f"), self.field(sorted(found))) for _each in range(2)]
            return migrations.CreateModel(self.name("New"), columns)
        if kind == "add":
            return migrations.AddField(model, self.name("f"), self.field(sorted(found)))
        if kind == "remove" and free:
            return migrations.RemoveField(model, self.random.choice(free))
        if kind == "alter" and free:
            name = self.random.choice(free)
            field = self.altered(fields[name])
            return migrations.AlterField(model, name, field) if field is not None else None
        if kind == "rename_field" and free:
            return migrations.RenameField(model, self.random.choice(free), self.name("r"))
        if kind == "rename_model":
            return migrations.RenameModel(about.name, self.name("Moved"))
        if kind == "delete" and len(found) > 2 and not _pointed_to(found, model):
            return migrations.DeleteModel(about.name)
        if kind == "index" and plain:
            return migrations.AddIndex(
                model, models.Index(fields=[self.random.choice(plain)], name=self.name("by"))
            )
        if kind == "unindex" and about.options.get("indexes"):
            return migrations.RemoveIndex(model, self.random.choice(about.options["indexes"]).name)
        if kind == "constrain" and plain:
            column = self.random.choice(plain)
            if self.random.random() < 0.5:
                return migrations.AddConstraint(
                    model, models.UniqueConstraint(fields=[column], name=self.name("one"))
                )
            check = models.CheckConstraint(
                name=self.name("check"),
                **{
                    "condition" if django.VERSION >= (5, 1) else "check": ~models.Q(
                        **{f"{column}__isnull": True}
                    )
                },
            )
            return migrations.AddConstraint(model, check)
        if kind == "unconstrain" and about.options.get("constraints"):
            return migrations.RemoveConstraint(model, self.random.choice(about.options["constraints"]).name)
        if kind == "together" and len(plain) > 1:
            sets = {tuple(self.random.sample(plain, 2)) for _each in range(self.random.choice((0, 1, 1, 2)))}
            return migrations.AlterUniqueTogether(model, sets)
        if kind == "table":
            return migrations.AlterModelTable(model, self.name("table_"))
        if kind == "options":
            return migrations.AlterModelOptions(model, {"verbose_name": self.name("v")})
        if kind == "python":
            return migrations.RunPython(_touch(model, sorted(plain)), migrations.RunPython.noop)
        if kind == "sql":
            table = about.options.get("db_table") or f"{APP}_{model}"
            return migrations.RunSQL(f'DELETE FROM "{table}" WHERE 1 = 0', migrations.RunSQL.noop)
        if kind == "noop":
            return migrations.RunPython(migrations.RunPython.noop, migrations.RunPython.noop)
        return None


def _plain(field: Any, number: int) -> Any:
    kind = type(field).__name__
    if "Integer" in kind:
        return number
    if kind in ("CharField", "TextField"):
        return str(number)
    return None


def _used(about: Any) -> set[str]:
    """Return the fields that an index or a constraint of the model names."""
    names: set[str] = set()
    for index in about.options.get("indexes") or ():
        names.update(index.fields)
    for constraint in about.options.get("constraints") or ():
        names.update(getattr(constraint, "fields", ()) or ())
        condition = getattr(constraint, "condition", None) or getattr(constraint, "check", None)
        names.update(re.findall(r"'(\w+?)(?:__\w+)?'", str(condition)))
    for entry in about.options.get("unique_together") or ():
        names.update(entry)
    return names


def _pointed_to(found: dict[str, Any], model: str) -> bool:
    for about in found.values():
        for field in about.fields.values():
            target = getattr(field.remote_field, "model", None) if field.is_relation else None
            if target is not None and str(target).lower().endswith(f".{model}"):
                return True
    return False


def _touch(model: str, columns: list[str]) -> Any:
    def touch(apps: Any, _editor: Any) -> None:
        for row in apps.get_model(APP, model).objects.all():
            if "label" in columns:
                row.label = "touched"
                row.save()

    return touch
