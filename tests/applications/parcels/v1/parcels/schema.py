"""Make what is not there yet in the database."""

from parcels.database import SCHEMA, ask

if __name__ == "__main__":
    ask(SCHEMA)
