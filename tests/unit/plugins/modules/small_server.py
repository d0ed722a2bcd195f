# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small real application: a master that listens, and a worker that answers, over a Unix socket or a TCP port.

It is copied into each test's release; the file ``fault`` beside it says what is wrong with that release:
``boot`` (ends at once), ``health`` (500), ``deaf`` (never listens), ``later`` (the master ends after a moment),
``respawn`` (its worker dies again and again), ``stubborn`` (ignores TERM), ``abrupt`` (drops what it has on TERM), ``sour`` (ends with 3 on TERM),
``lingering`` (goes on for 1.5 s when its worker has ended on TERM, and removes its own socket meanwhile).
Its socket is nobody else's to connect to, as a strict umask makes it. On TERM it takes no more connections, answers what it has, and ends.
"""

from __future__ import annotations

import http.server
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the deployment's id; /slow takes a moment."""

    fault = ""

    def do_GET(self) -> None:
        """Answer."""
        if self.path == "/slow":
            time.sleep(0.4)
        body = f"{os.environ['RUNBOOK_DEPLOYMENT']} {os.environ.get('GREETING', '')}".encode()
        self.send_response(500 if self.fault == "health" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """Return a name; a Unix socket's peer has none."""
        return "client"

    def log_message(self, *args: object) -> None:
        """Write nothing for a request."""


class Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """Answers on a socket that is listening already; waits for its threads at the end."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(None, Handler)
        self.socket = listening
        self.server_name, self.server_port = "small", 0

    def fileno(self) -> int:
        """Return what is waited on."""
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, str]:
        """Take the next connection."""
        return self.socket.accept()[0], "client"

    def shutdown_request(self, request: socket.socket) -> None:
        """Close a connection."""
        request.close()


def work(listening: socket.socket, fault: str) -> None:
    """Be the worker: answer until TERM."""
    server = Server(listening)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    if fault == "respawn":
        threading.Timer(0.3, lambda: os._exit(1)).start()
    server.serve_forever(poll_interval=0.01)
    server.server_close()
    os._exit(0)


def main() -> None:
    """Be the master."""
    kind, place = sys.argv[1], sys.argv[2]
    fault = (Path(__file__).parent / "fault").read_text().strip()
    print(f"starting with {os.environ.get('SECRET_KEY', 'no key')}", flush=True)
    if fault == "boot":
        raise ImportError("No module named 'shop.nonsense'")
    if kind == "worker":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            time.sleep(1)
    if fault == "deaf":
        time.sleep(60)
    listening = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
    if kind == "unix":
        os.umask(0o077)
        listening.bind(place)
    else:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", int(place)))
    listening.listen(128)
    Handler.fault = fault
    children: list[int] = []

    def spawn() -> None:
        child = os.fork()
        if child == 0:
            work(listening, fault)
        children[:] = [child]

    ending = []

    def end(*_args: object) -> None:
        ending.append(True)
        os.kill(children[0], signal.SIGKILL if fault == "abrupt" else signal.SIGTERM)

    spawn()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if fault == "stubborn" else end)
    if fault == "later":
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, 0.6)
    while True:
        os.waitpid(children[0], 0)
        if ending and fault == "lingering":
            time.sleep(0.3)
            # As gunicorn: where somebody else has removed it, this is its end, with a traceback.
            os.unlink(place)
            time.sleep(1.2)
        if ending:
            sys.exit(3 if fault in ("later", "sour") else 0)
        spawn()


if __name__ == "__main__":
    main()
