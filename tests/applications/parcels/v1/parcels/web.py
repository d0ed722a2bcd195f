"""The page, its health and its figures."""

import json
import logging
import multiprocessing
import os
from pathlib import Path

import psycopg2

from parcels.database import ask

logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")

from parcels.front import HEADING  # noqa: E402 - what it says at the start is to be written as all else

VERSION = Path(__file__).resolve().parent.parent.joinpath("VERSION")
# Made before gunicorn forks (--preload), so that all workers count together and any of them can answer for all.
COUNTS = {status: multiprocessing.Value("q", 0) for status in (200, 404, 500, 503)}
REASONS = {200: "OK", 404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}


def health():
    """200 with a database, 503 without."""
    answer = {
        name.lower(): os.environ.get(f"RUNBOOK_{name}", "") for name in ("RELEASE", "COMMIT", "DEPLOYMENT")
    }
    version = VERSION.read_text(encoding="utf-8").strip() if VERSION.is_file() else "development"
    answer.update(status="ok", database="ok", version=version)
    try:
        ask("SELECT 1")
    except psycopg2.Error:
        answer.update(status="unavailable", database="unavailable")
        return 503, "application/json", json.dumps(answer)
    return 200, "application/json", json.dumps(answer)


def figures():
    """How many requests were answered, by status, as Prometheus reads it."""
    lines = ["# TYPE parcels_requests_total counter"]
    lines += [
        f'parcels_requests_total{{status="{status}"}} {count.value}' for status, count in COUNTS.items()
    ]
    return 200, "text/plain; version=0.0.4", "\n".join(lines) + "\n"


def home():
    """A page for people; 500 where there is nothing to show."""
    if not HEADING:
        return 500, "text/plain", "There is nothing to show.\n"
    return 200, "text/html", f"<!doctype html><title>Parcels</title><h1>{HEADING}</h1>"


def lost():
    """What goes wrong in this application."""
    logging.getLogger("parcels").error("a parcel is lost")
    return 500, "text/plain", "The parcel is lost.\n"


PAGES = {"/": home, "/healthz": health, "/metrics": figures, "/lost": lost}


def application(environ, start_response):
    """Answer one request."""
    page = PAGES.get(environ.get("PATH_INFO", "/"))
    status, kind, text = page() if page else (404, "text/plain", "There is no such page.\n")
    if page is not figures:
        with COUNTS[status].get_lock():
            COUNTS[status].value += 1
    body = text.encode()
    start_response(
        f"{status} {REASONS[status]}", [("Content-Type", kind), ("Content-Length", str(len(body)))]
    )
    return [body]
