"""How Alembic reaches the database: through the application that Flask-Migrate has loaded."""

from logging.config import fileConfig

from alembic import context
from flask import current_app

fileConfig(context.config.config_file_name, disable_existing_loggers=False)
extension = current_app.extensions["migrate"]

with extension.db.engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=extension.db.metadata, **extension.configure_args
    )
    with context.begin_transaction():
        context.run_migrations()
