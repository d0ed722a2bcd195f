# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real HTTP server over TCP, TLS or a Unix socket whose paths each have a fault of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.parse
from typing import Any

HUGE = 3 * 1024 * 1024
FORM = (
    '<form method="post" action="{action}"><input type="hidden" name="csrfmiddlewaretoken" value="tok&amp;en">'
    "{fields}</form>"
)


class Request:
    """What a client sent."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path, _question, self.query = path.partition("?")
        self.headers = headers
        self.form = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        self.body = body.decode()
        self.cookies = dict(
            item.strip().split("=", 1) for item in headers.get("cookie", "").split(";") if "=" in item
        )


class FaultyServer:
    """Serves until it is closed; ``requests`` are all that came in, ``changed`` what a POST wrote."""

    def __init__(self, path: str | None = None, certificate: str | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.notes: list[str] = []
        self.over = threading.Event()
        self.context = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate)
        if path:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.bind(path)
        else:
            self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(("127.0.0.1", port))
            self.port = self.listener.getsockname()[1]
        self.listener.listen(256)
        self.count = 0
        self.careless = False
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *details: object) -> None:
        self.over.set()
        # A thread in accept(2) is only woken by shutdown.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    @property
    def address(self) -> str:
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"

    def _serve(self) -> None:
        while not self.over.is_set():
            try:
                connection, _address = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            stream = connection.makefile("rb")
            method, path, _version = stream.readline().decode().split()
            headers = {}
            while True:
                line = stream.readline().decode().strip()
                if not line:
                    break
                name, _colon, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
            request = Request(method, path, headers, body)
            self.requests.append(request)
            self.count += 1
            answer = getattr(self, "do_" + request.path.strip("/").replace("/", "_").replace("-", "_"), None)
            if answer is None:
                self.send(connection, 404, "nothing here")
            else:
                answer(connection, request)
            stream.close()
        except (OSError, ValueError):
            pass
        finally:
            connection.close()

    @staticmethod
    def send(connection: socket.socket, status: int, text: str, *headers: str) -> None:
        body = text.encode()
        lines = [f"HTTP/1.1 {status} Text", f"Content-Length: {len(body)}", *headers]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def drip(self, connection: socket.socket, data: bytes, pause: float) -> None:
        for byte in data:
            if self.over.wait(pause):
                return
            connection.sendall(bytes([byte]))

    def do_ok(self, connection: Any, request: Request) -> None:
        self.send(connection, 200, "all is well", "X-Release: 0123456789ab-00000000")

    def do_json(self, connection: Any, request: Request) -> None:
        document = {
            "status": "ok",
            "commit": "0123456789abcdef",
            "took": {"ms": 480},
            "items": [{"name": "a"}, {"name": "b"}],
        }
        self.send(connection, 200, json.dumps(document), "Content-Type: application/json")

    def do_echo(self, connection: Any, request: Request) -> None:
        document = {"method": request.method, "query": request.query, "body": request.body, **request.headers}
        self.send(connection, 200, json.dumps(document))

    def do_error(self, connection: Any, request: Request) -> None:
        self.send(connection, 500, "Traceback: it broke")

    def do_slow(self, connection: Any, request: Request) -> None:
        self.over.wait(0.4)
        self.send(connection, 200, "all is well")

    def do_hang(self, connection: Any, request: Request) -> None:
        self.over.wait(30)

    def do_dribble_head(self, connection: Any, request: Request) -> None:
        self.drip(connection, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100, 0.1)

    def do_dribble_body(self, connection: Any, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nall is well")
        self.drip(connection, b"." * 1000, 0.1)

    def do_continue(self, connection: Any, request: Request) -> None:
        while not self.over.wait(0.05):
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def do_flaky(self, connection: Any, request: Request) -> None:
        self.send(connection, 500 if self.count % 3 == 0 else 200, "all is well")

    def do_flapping(self, connection: Any, request: Request) -> None:
        self.send(connection, 500 if self.count % 2 == 0 else 200, "all is well")

    def do_late(self, connection: Any, request: Request) -> None:
        self.send(connection, 200 if self.count > 3 else 503, "all is well")

    def do_reset(self, connection: Any, request: Request) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def do_closed(self, connection: Any, request: Request) -> None:
        pass

    def do_garbage(self, connection: Any, request: Request) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)

    def do_short(self, connection: Any, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nall is well")

    def do_chunk_short(self, connection: Any, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nall is well")

    def do_badjson(self, connection: Any, request: Request) -> None:
        self.send(connection, 200, '{"status": "ok"')

    def do_huge(self, connection: Any, request: Request) -> None:
        self.send(connection, 200, "start " + "x" * HUGE + " end")

    def do_endless(self, connection: Any, request: Request) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nstart ")
        while not self.over.is_set():
            connection.sendall(b"x" * 65536)

    def do_loop(self, connection: Any, request: Request) -> None:
        self.send(connection, 302, "", "Location: /loop")

    def do_secure(self, connection: Any, request: Request) -> None:
        """As Django with SECURE_SSL_REDIRECT behind a proxy."""
        if request.headers.get("x-forwarded-proto") == "https":
            self.send(connection, 200, "all is well")
        else:
            self.send(connection, 301, "", f"Location: https://{request.headers['host']}/secure")

    def do_away(self, connection: Any, request: Request) -> None:
        self.send(connection, 302, "", "Location: http://elsewhere.invalid/")

    def do_moved(self, connection: Any, request: Request) -> None:
        self.send(connection, 302, "", "Location: /ok?next=1")

    def do_latin(self, connection: Any, request: Request) -> None:
        body = "grün".encode("latin-1")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=latin-1\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + body)

    # An application as goexplorer: log in, open a signal, write a note.

    def do_login(self, connection: Any, request: Request) -> None:
        if request.method == "GET":
            fields = '<input name="username"><input name="password" type="password">'
            text = "<form action='/search'><input name='q'></form>" + FORM.format(action="", fields=fields)
            self.send(connection, 200, text, "Set-Cookie: csrftoken=c1; Path=/; Secure; Max-Age=600")
        elif not self.csrf(connection, request):
            return
        elif request.form == {**request.form, "username": "ada", "password": "ada's"}:
            self.send(
                connection,
                302,
                "",
                "Location: /signals/",
                "Set-Cookie: sessionid=s2; Path=/; HttpOnly; Secure",
            )
        elif request.form.get("password") != "pa&ss <w>":
            self.send(connection, 200, f"wrong password {request.form.get('password')}")
        else:
            self.send(
                connection,
                302,
                "",
                "Location: /signals/",
                "Set-Cookie: sessionid=s1; Path=/; HttpOnly; Secure",
                "Set-Cookie: old=; Path=/; Max-Age=0",
            )

    def csrf(self, connection: Any, request: Request) -> bool:
        good = request.cookies.get("csrftoken") == "c1" and (
            request.form.get("csrfmiddlewaretoken") == "tok&en" or request.headers.get("x-csrftoken") == "c1"
        )
        # Django asks for a Referer of the same host when the request came over https.
        if request.headers.get("x-forwarded-proto") == "https":
            good = good and request.headers.get("referer", "").startswith(
                f"https://{request.headers['host']}/"
            )
        if not good:
            self.send(connection, 403, "CSRF verification failed")
        return good

    def do_staff(self, connection: Any, request: Request) -> None:
        """For administrators; `careless`: for whoever has logged in."""
        if self.session(connection, request):
            if request.cookies["sessionid"] == "s1" or self.careless:
                self.send(connection, 200, "Everything about everybody. Log out")
            else:
                self.send(connection, 403, "This is not for you.")

    def session(self, connection: Any, request: Request) -> bool:
        if request.cookies.get("sessionid") in ("s1", "s2"):
            return True
        self.send(connection, 302, "", f"Location: /login/?next={request.path}")
        return False

    def do_signals(self, connection: Any, request: Request) -> None:
        if self.session(connection, request):
            self.send(connection, 200, '<a href="/signals/3/">signal</a> Log out', "X-Count: 1")

    def do_signals_3(self, connection: Any, request: Request) -> None:
        if self.session(connection, request):
            fields = "<textarea name=note>\nDear</textarea><select name=kind><option value=a><option value=b selected>"
            fields += "</select><input type=checkbox name=urgent checked><input type=checkbox name=never>"
            saved = "Internal note added" if self.notes else ""
            self.send(connection, 200, saved + FORM.format(action="notes/", fields=fields))

    def do_signals_3_notes(self, connection: Any, request: Request) -> None:
        if request.method != "POST":
            self.send(connection, 405, "")
        elif self.session(connection, request) and self.csrf(connection, request):
            self.notes.append(request.body)
            self.send(connection, 303, "", "Location: /signals/3/")


def make_certificate(
    directory: str, names: str = "DNS:shop.example.org,IP:127.0.0.1", days: int = 2
) -> str | None:
    """Return a file with a throwaway key and certificate, or None where there is no openssl."""
    if not shutil.which("openssl"):
        return None
    path = os.path.join(directory, f"server-{time.monotonic_ns()}.pem")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", str(days), "-subj", "/CN=test", "-addext", f"subjectAltName={names}"]
    done = subprocess.run([*argv, "-keyout", path, "-out", f"{path}.crt"], capture_output=True, check=False)
    if done.returncode:
        return None
    with open(path, "a", encoding="ascii") as key, open(f"{path}.crt", encoding="ascii") as certificate:
        key.write(certificate.read())
    return path
