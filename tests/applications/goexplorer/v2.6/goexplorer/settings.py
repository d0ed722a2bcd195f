# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of GoExplorer; everything that differs between installations comes from the environment."""

from __future__ import annotations

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = (
    (BASE_DIR / "VERSION").read_text(encoding="utf-8").strip() if (BASE_DIR / "VERSION").is_file() else "dev"
)


def flag(name: str) -> bool:
    """Return whether the environment variable *name* is switched on."""
    return os.environ.get(name, "0").strip().lower() in {"1", "true", "yes", "on"}


def required(name: str) -> str:
    """Return the environment variable *name*; without it nothing starts."""
    value = os.environ.get(name, "")
    if not value:
        raise ImproperlyConfigured(
            f"the environment variable {name} is not set: give it a value before any command"
        )
    return value


def database() -> dict:
    """Return the connection that the environment describes."""
    engine = os.environ.get("GOEXPLORER_DB_ENGINE", "sqlite")
    if engine == "sqlite":
        options = {"timeout": 20, "transaction_mode": "IMMEDIATE"}
        journal = os.environ.get("GOEXPLORER_SQLITE_JOURNAL", "")
        if journal:
            if not journal.isalpha():
                raise ImproperlyConfigured(
                    f"GOEXPLORER_SQLITE_JOURNAL is {journal!r}: expected a mode such as wal"
                )
            options["init_command"] = f"PRAGMA journal_mode={journal}"
        path = os.environ.get("GOEXPLORER_DATABASE") or str(BASE_DIR / "db.sqlite3")
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": options}
    if engine == "postgresql":
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": required("GOEXPLORER_DB_NAME"),
            "HOST": os.environ.get("GOEXPLORER_DB_HOST", ""),
            "PORT": os.environ.get("GOEXPLORER_DB_PORT", ""),
            "USER": os.environ.get("GOEXPLORER_DB_USER", ""),
            "PASSWORD": os.environ.get("GOEXPLORER_DB_PASSWORD", ""),
            "OPTIONS": {"connect_timeout": 5},
        }
    raise ImproperlyConfigured(f"GOEXPLORER_DB_ENGINE is {engine!r}: expected sqlite or postgresql")


SECRET_KEY = required("GOEXPLORER_SECRET_KEY")
DEBUG = flag("GOEXPLORER_DEBUG")
ALLOWED_HOSTS = [
    host.strip()
    for host in os.environ.get("GOEXPLORER_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")
    if host.strip()
]

INSTALLED_APPS = [
    "goexplorer.apps.GoexplorerAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "owner_agreements.apps.OwnerAgreementsConfig",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "goexplorer.middleware.ReleaseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "goexplorer.urls"
WSGI_APPLICATION = "goexplorer.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "goexplorer" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "goexplorer.context.version",
            ],
        },
    },
]

DATABASES = {"default": database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "owners"
LOGOUT_REDIRECT_URL = "home"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
MEDIA_URL = "/media/"
MEDIA_ROOT = Path(os.environ.get("GOEXPLORER_MEDIA") or BASE_DIR / "media")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "goexplorer.storage.StaticStorage"
    },
}
TEST_RUNNER = "goexplorer.testing.Runner"

if flag("GOEXPLORER_HTTPS"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("GOEXPLORER_LOG_LEVEL", "INFO").upper()},
    # Django's own handlers are silent, or write mail, when DEBUG is off; a failure has to be in the log.
    "loggers": {"django": {"handlers": [], "propagate": True}},
}
