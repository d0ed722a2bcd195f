"""What runs here, and whether it can work."""

import os
from pathlib import Path

from flask import Blueprint, jsonify
from leadbook.models import db
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

blueprint = Blueprint("health", __name__)
VERSION = Path(__file__).resolve().parent.parent.joinpath("VERSION")


def version():
    """The version of the files."""
    return VERSION.read_text(encoding="utf-8").strip() if VERSION.is_file() else "development"


@blueprint.get("/healthz")
def healthz():
    """200 with a database, 503 without."""
    answer = {
        name.lower(): os.environ.get(f"RUNBOOK_{name}", "") for name in ("RELEASE", "COMMIT", "DEPLOYMENT")
    }
    answer.update(
        status="ok", database="ok", version=version(), revisions=[], region=os.environ["LEADBOOK_REGION"]
    )
    try:
        rows = db.session.execute(text("SELECT version_num FROM alembic_version ORDER BY version_num"))
        answer["revisions"] = [row[0] for row in rows]
        db.session.execute(text("SELECT COUNT(*) FROM leads"))
    except SQLAlchemyError:
        answer.update(status="unavailable", database="unavailable")
        return jsonify(answer), 503
    return jsonify(answer)


@blueprint.get("/")
def home():
    """A page for people."""
    return f"<!doctype html><title>Leadbook</title><h1>Leadbook {version()}</h1>"
