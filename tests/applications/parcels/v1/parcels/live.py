"""Tell by a WebSocket how many parcels there are: python -m parcels.live [PORT]."""

import json
import sys

from websockets.sync.server import serve

from parcels.database import ask


def talk(connection):
    """Answer each question of one visitor."""
    for question in connection:
        if json.loads(question) == {"ask": "parcels"}:
            connection.send(json.dumps({"parcels": ask("SELECT count(*) FROM parcels")[0]}))
        else:
            connection.send(json.dumps({"error": "ask for parcels"}))


if __name__ == "__main__":
    with serve(talk, "127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 8765) as server:
        server.serve_forever()
