"""The database, and what is in it."""

import os

import psycopg2

# Run with each deployment: it changes nothing the second time.
SCHEMA = """
CREATE TABLE IF NOT EXISTS depots (name text PRIMARY KEY);
CREATE TABLE IF NOT EXISTS parcels (id serial PRIMARY KEY, code text NOT NULL, depot text NOT NULL REFERENCES depots);
CREATE INDEX IF NOT EXISTS parcels_code ON parcels (code);
INSERT INTO depots VALUES ('north'), ('south') ON CONFLICT DO NOTHING;
"""


def ask(statement):
    """The first row that *statement* answers with; None where it answers with none."""
    connection = psycopg2.connect(os.environ["PARCELS_DATABASE_URL"], connect_timeout=3)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None
    finally:
        connection.close()
