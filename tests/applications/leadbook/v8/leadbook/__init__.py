"""Leads, and their review."""

import os

from flask import Flask, jsonify
from werkzeug.exceptions import HTTPException

from leadbook.models import db, migrate


def create_app():
    """Return the application as the environment configures it."""
    application = Flask(__name__)
    application.config["SQLALCHEMY_DATABASE_URI"] = os.environ["LEADBOOK_DATABASE_URL"]
    application.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_pre_ping": True}
    application.config["TOKEN"] = os.environ["LEADBOOK_TOKEN"]
    db.init_app(application)
    migrate.init_app(application, db)
    from leadbook import blueprints

    blueprints.register(application)

    @application.errorhandler(HTTPException)
    def failed(error):
        return jsonify(error=error.name), error.code

    return application
