# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Notifications to real servers: what arrives, what a fault makes of it, and that no secret is told."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import ssl
import subprocess
import time

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from ansible_collections.runbook.deploy.plugins.module_utils._notify import (
    Untold,
    event_of,
    fields_of,
    send,
    tell,
)
from ansible_collections.runbook.deploy.plugins.module_utils._notify_spec import (
    EVENTS,
    FIELDS,
    fill,
    parse_notifications,
)
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from faulty_server import FaultyServer

PASSWORD = "correct-horse-battery"
HOOK = "T0001-hidden-path"
FACTS = {
    "kind": "deployment",
    "verdict": "rolled_back",
    "application": "shop",
    "stage": "production",
    "record": {
        "id": "20261121T013700-ab12",
        "version": "v2.7",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "operator": "alice",
        "controller": "ci1",
    },
    "failures": [{"host": "web2", "phase": "restart", "reason": "It answers 500.\nTwice."}],
    "plan": {"level": "code", "reason": "Every migration is compatible."},
    "primary": "web1",
    "url": "https://shop.example.org",
    "record_path": "/srv/shop/deployments/20261121T013700-ab12.json",
    "report_path": "reports/shop/production/20261121T013700-ab12.md",
}


class Hooks(FaultyServer):
    """Paths that take a message, and paths that do not."""

    def do_hook(self, connection, request):
        self.send(connection, 200, "ok")

    def do_loop(self, connection, request):
        self.send(connection, 302, "", f"Location: {self.address}/loop")

    def do_echoes(self, connection, request):
        self.send(connection, 403, f"not with {request.headers.get('authorization')} at {request.path}")

    def do_drip(self, connection, request):
        self.drip(connection, b"HTTP/1.1 200 OK\r\n" + b"X-Padding: 1\r\n" * 1000, 0.2)

    def do_silent(self, connection, request):
        self.over.wait(60)


@pytest.fixture
def hooks():
    with Hooks() as server:
        yield server


def webhook(server, path="hook", **changes):
    return {"name": "ops", "kind": "webhook", "url": f"{server.address}/{path}", **changes}


def told(*items, event="rollback"):
    return tell(items, event, FACTS)


class Mailbox:
    """A handler of aiosmtpd that keeps what arrives."""

    def __init__(self, refuse=()):
        self.messages = []
        self.peers = []
        self.refuse = refuse

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.refuse:
            return "550 5.1.1 nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.messages.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        self.peers.append((session.ssl is not None, session.authenticated))
        return "250 taken"


class Server(Controller):
    """A controller on a port that nobody can take between its choice and its use; a first connection trusts anybody."""

    def __init__(self, box, **options):
        self.listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(box, "127.0.0.1", self.listener.getsockname()[1], ready_timeout=30, **options)

    def _create_server(self):
        return self.loop.create_server(self._factory_invoker, sock=self.listener, ssl=self.ssl_context)

    def _trigger_server(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
            if not self.ssl_context:
                plain.recv(1)
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(plain) as session:
                session.recv(1)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Key and self-signed certificate of localhost in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    argv += [
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        str(path),
        "-out",
        f"{path}.crt",
    ]
    subprocess.run(argv, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_name("both.pem.crt").read_text())
    return path


def server_context(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def allow(server, session, envelope, mechanism, data):
    good = mechanism in ("PLAIN", "LOGIN") and (data.login, data.password) == (b"deploy", PASSWORD.encode())
    # Not handled: the server shall answer, not we.
    return AuthResult(success=good, handled=False)


@pytest.fixture
def mail(certificate):
    """Return a function that starts a mail server and returns its mailbox and the item that reaches it."""
    running = []

    def start(tls="starttls", refuse=(), **changes):
        box = Mailbox(refuse)
        context = server_context(certificate)
        if tls == "implicit":
            controller = Server(box, ssl_context=context)
        elif tls == "starttls":
            controller = Server(box, tls_context=context, require_starttls=True, authenticator=allow)
        else:
            controller = Server(box)
        controller.start()
        running.append(controller)
        item = {
            "name": "on call",
            "kind": "mail",
            "host": "127.0.0.1",
            "port": controller.port,
            "tls": tls,
            "ca_path": f"{certificate}.crt",
            "from": "deploy@example.org",
            "to": ["ann@example.org", "bob@example.org"],
            "timeout": 30,
            **changes,
        }
        return box, item

    yield start
    for controller in running:
        controller.stop()


class TestWebhook:
    def test_a_webhook_gets_every_value_and_a_text(self, hooks):
        answer = told(webhook(hooks, headers={"Authorization": f"Bearer {PASSWORD}"}))
        assert answer == {"event": "rollback", "sent": ["ops"], "unsent": []}
        (request,) = hooks.requests
        assert (request.method, request.headers["content-type"]) == ("POST", "application/json")
        assert request.headers["authorization"] == f"Bearer {PASSWORD}"
        document = json.loads(request.body)
        assert set(document) == {*FIELDS, "subject", "text"}
        assert document["commit"] == "0123456789ab"
        assert document["host"] == "web2"
        assert document["verdict"] == "FAILED, AND TAKEN BACK"
        assert "restart on web2: It answers 500." in document["reason"]
        assert document["text"].startswith(document["subject"] + "\n")
        assert "decision: code: Every migration is compatible." in document["text"]

    def test_slack_gets_the_text_alone(self, hooks):
        told(webhook(hooks, kind="slack"))
        assert set(json.loads(hooks.requests[0].body)) == {"text"}

    def test_only_those_who_want_the_event_are_told(self, hooks):
        items = [webhook(hooks, name="all"), webhook(hooks, name="bad news", events=["failure"])]
        assert told(*items, event="success")["sent"] == ["all"]
        assert told(*items, event="failure")["sent"] == ["all", "bad news"]

    @pytest.mark.parametrize(
        ("path", "says"),
        [
            ("error", "answered 500"),
            ("missing", "answered 404"),
            ("loop", "a redirect, which is not followed"),
            ("echoes", "answered 403"),
        ],
    )
    def test_what_is_not_taken_is_a_sentence_without_secrets(self, hooks, path, says):
        item = webhook(hooks, f"{path}/?key={HOOK}", headers={"Authorization": f"Bearer {PASSWORD}"})
        answer = told(item)
        assert answer["sent"] == []
        (failure,) = answer["unsent"]
        assert says in failure["message"]
        assert failure["message"].startswith(
            "Notification 'ops' of the event rollback was not sent to http://127.0.0.1:"
        )
        assert HOOK not in json.dumps(answer)
        assert PASSWORD not in json.dumps(answer)
        # A loop is asked once.
        assert len(hooks.requests) == 1

    def test_nobody_listens(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/{HOOK}"
            answer = told({"name": "ops", "kind": "slack", "url": url})
        assert "nothing listens there" in answer["unsent"][0]["message"]
        assert HOOK not in json.dumps(answer)

    def test_a_certificate_that_nobody_vouches_for_is_refused_and_one_of_our_own_is_not(self, certificate):
        with Hooks(certificate=str(certificate)) as server:
            answer = told(webhook(server, timeout=30))
            assert "certificate" in answer["unsent"][0]["message"]
            assert server.requests == []
            assert told(webhook(server, timeout=30, ca_path=f"{certificate}.crt"))["sent"] == ["ops"]

    def test_a_hanging_server_costs_its_own_time_and_the_others_nothing(self, hooks):
        slow = [webhook(hooks, path, name=path, timeout=1) for path in ("silent", "drip", "silent/")]
        slow[2]["name"] = "third"
        begun = time.monotonic()
        answer = told(*slow, webhook(hooks, name="quick", timeout=30))
        # One after the other they would need more; without a limit "silent" alone takes a minute.
        assert time.monotonic() - begun < 25
        assert answer["sent"] == ["quick"]
        assert [failure["name"] for failure in answer["unsent"]] == ["silent", "drip", "third"]
        assert all("no answer in 1 s" in failure["message"] for failure in answer["unsent"])


class TestMail:
    def test_a_login_over_starttls(self, mail):
        box, item = mail(user="deploy", password=PASSWORD)
        assert told(item) == {"event": "rollback", "sent": ["on call"], "unsent": []}
        ((sender, recipients, content),) = box.messages
        assert (sender, recipients) == ("deploy@example.org", ["ann@example.org", "bob@example.org"])
        message = email.message_from_bytes(content, policy=email.policy.default)
        assert message["Subject"] == "shop on production: taken back to the release before"
        assert message["Auto-Submitted"] == "auto-generated"
        assert message["Date"]
        assert message["Message-ID"].endswith("@example.org>")
        assert "It answers 500.\r\nTwice." in message.get_content()
        ((encrypted, authenticated),) = box.peers
        assert encrypted
        assert authenticated

    def test_implicit_tls(self, mail):
        box, item = mail(tls="implicit")
        assert told(item)["unsent"] == []
        assert len(box.messages) == 1

    def test_none_where_that_is_asked_for(self, mail):
        box, item = mail(tls="none")
        assert told(item)["unsent"] == []
        assert [encrypted for encrypted, _authenticated in box.peers] == [False]

    def test_umlauts_and_lines_in_a_subject_arrive_as_one_line(self, mail):
        box, item = mail(
            tls="none", templates={"rollback": {"subject": "Zurück: {reason}\nBcc: eve@example.org"}}
        )
        assert told(item)["unsent"] == []
        message = email.message_from_bytes(box.messages[0][2], policy=email.policy.default)
        assert message["Subject"].startswith("Zurück: restart on web2: It answers 500. Twice.")
        assert message["Bcc"] is None
        assert box.messages[0][1] == ["ann@example.org", "bob@example.org"]

    def test_a_wrong_password(self, mail):
        box, item = mail(user="deploy", password="wrong-" + PASSWORD)
        answer = told(item)
        assert "login of user 'deploy' is refused (535)" in answer["unsent"][0]["message"]
        assert PASSWORD not in json.dumps(answer)
        assert box.messages == []

    def test_without_starttls_nothing_is_sent(self, mail):
        box, item = mail(tls="none")
        answer = told({**item, "tls": "starttls"})
        assert "choose another tls" in answer["unsent"][0]["message"]
        assert box.messages == []

    def test_an_unknown_authority(self, mail):
        box, item = mail()
        del item["ca_path"]
        assert "its certificate is refused" in told(item)["unsent"][0]["message"]
        assert box.messages == []

    def test_a_plain_port_that_is_asked_for_implicit_tls(self, mail):
        _box, item = mail(tls="none")
        assert "TLS failed" in told({**item, "tls": "implicit"})["unsent"][0]["message"]

    def test_one_recipient_of_two_and_none(self, mail):
        box, item = mail(tls="none", refuse=("bob@example.org",))
        message = told(item)["unsent"][0]["message"]
        assert (
            "1 of 2 recipients have it, refused are bob@example.org (550 5.1.1 nobody of that name)"
            in message
        )
        assert box.messages[0][1] == ["ann@example.org"]
        assert "every recipient is refused" in told({**item, "to": "bob@example.org"})["unsent"][0]["message"]

    def test_nobody_and_silence(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            item = {
                "name": "a",
                "kind": "mail",
                "host": "127.0.0.1",
                "port": free.getsockname()[1],
                "tls": "none",
            }
            item.update({"from": "a@b", "to": "c@d", "timeout": 30})
            assert "nothing listens there" in told(item)["unsent"][0]["message"]
            free.listen()
            assert "no answer in 0.5 s" in told({**item, "timeout": 0.5})["unsent"][0]["message"]

    @pytest.mark.parametrize("kind", ["mail", "webhook", "implicit"])
    def test_silence_that_the_connection_itself_notices_is_told_the_same(self, kind):
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            item = {"name": "a", "kind": "webhook", "url": f"http://127.0.0.1:{port}/", "timeout": 0.5}
            if kind != "webhook":
                item = {"name": "a", "kind": "mail", "host": "127.0.0.1", "port": port, "timeout": 0.5}
                item.update({"from": "a@b", "to": "c@d", "tls": "none" if kind == "mail" else kind})
            (one,) = parse_notifications([item])
            with pytest.raises(Untold, match="no answer in 0.5 s"):
                send(one, "start", dict.fromkeys(FIELDS, "x"))


class TestWords:
    @pytest.mark.parametrize(
        ("kind", "verdict", "event"),
        [
            ("deployment", "", "start"),
            ("deployment", "success", "success"),
            ("deployment", "rolled_back", "rollback"),
            ("deployment", "flags_off", "rollback"),
            ("deployment", "abandoned", "failure"),
            ("deployment", "stopped", "failure"),
            ("deployment", "refused", "failure"),
            ("deployment", "no_change", None),
            ("deployment", "checked", None),
            ("rollback", "", "start"),
            ("rollback", "success", "rollback"),
            ("rollback", "failed", "failure"),
            ("rollback", "stopped", "failure"),
            ("rollback", "no_change", None),
        ],
    )
    def test_events(self, kind, verdict, event):
        assert event_of(kind, verdict) == event

    def test_lines_without_a_value_are_left_out(self):
        fields = fields_of({"application": "shop", "stage": "test", "record": {}}, "start")
        assert set(fields) == set(FIELDS)
        assert fill("a\nreport: {report}\n{application} {reason}\n", fields) == "a\nshop "

    def test_json_in_a_template_is_left_as_it_is(self):
        assert fill('{"text": "{stage}"}', {"stage": "test"}) == '{"text": "test"}'

    def test_a_secret_that_looks_like_a_placeholder_is_put_in_once(self):
        assert fill("{reason}", {"reason": "{stage}", "stage": "x"}) == "{stage}"

    def test_no_event_is_no_message(self):
        assert told({"not": "read"}, event=None) == {"event": None, "sent": [], "unsent": []}

    def test_what_cannot_be_read_is_told_and_not_raised(self):
        answer = told({"name": "a", "kind": "fax"})
        assert answer["unsent"][0]["message"].startswith(
            "Nobody was told: app_notifications[0].kind must be one of"
        )


MAIL = {"name": "a", "kind": "mail", "host": "mail.example.org", "from": "a@b.org", "to": ["c@d.org"]}
HOOKED = {"name": "a", "kind": "webhook", "url": f"https://example.org/{HOOK}"}


class TestSpec:
    def test_ours(self):
        for item in (MAIL, HOOKED, {**HOOKED, "kind": "slack"}):
            (one,) = parse_notifications([item])
            assert one.events == EVENTS
            assert one.timeout == 10
        assert parse_notifications([MAIL])[0].port == 587
        assert parse_notifications([{**MAIL, "tls": "implicit"}])[0].port == 465

    def test_a_part_of_a_template_leaves_the_other(self):
        (one,) = parse_notifications([{**MAIL, "templates": {"failure": {"subject": "Oh {version}"}}}])
        assert one.templates["failure"]["subject"] == "Oh {version}"
        assert "{reason}" in one.templates["failure"]["body"]

    @pytest.mark.parametrize(
        ("item", "says"),
        [
            ("mail", "must be a mapping"),
            ({**HOOKED, "kind": "fax"}, "kind must be one of"),
            ({**HOOKED, "host": "x"}, "unknown key 'host'"),
            ({**HOOKED, "urls": "x"}, "did you mean url?"),
            ({**HOOKED, "name": " "}, "has no name"),
            ({**HOOKED, "url": ""}, "url must be a text"),
            ({**HOOKED, "url": f"ftp://example.org/{HOOK}"}, "url must be an address"),
            ({**HOOKED, "url": f"http://example.org:99999/{HOOK}"}, "url must be an address"),
            ({**HOOKED, "url": f"http://[::1/{HOOK}"}, "url must be an address"),
            ({**HOOKED, "url": [HOOK]}, "url must be a text, found list"),
            ({**HOOKED, "headers": [HOOK]}, "headers must be a mapping"),
            ({**HOOKED, "headers": {"A": f"{HOOK}\r\nB: c"}}, "headers.A must be one line"),
            ({**HOOKED, "events": []}, "events must be a list"),
            ({**HOOKED, "events": ["end"]}, "events must be a list"),
            ({**HOOKED, "timeout": 0}, "timeout must be"),
            ({**HOOKED, "timeout": True}, "timeout must be"),
            ({**HOOKED, "templates": {"end": {}}}, "templates.end is no event"),
            ({**HOOKED, "templates": {"start": "x"}}, "templates.start must be a mapping"),
            ({**HOOKED, "templates": {"start": {"text": "x"}}}, "with subject, body or both"),
            ({**HOOKED, "templates": {"start": {"body": "{verson}"}}}, "did you mean version?"),
            ({**MAIL, "tls": True}, "tls must be one of"),
            ({**MAIL, "port": "25"}, "port must be a number"),
            ({**MAIL, "to": []}, "to must be a list"),
            ({**MAIL, "to": ["a@b.org, c@d.org"]}, "to must be a list"),
            ({**MAIL, "from": "Me <a@b.org>"}, "from must be an address"),
            ({**MAIL, "user": "a"}, "only one of user and password"),
            ({**MAIL, "user": "a", "password": HOOK, "tls": "none"}, "unencrypted"),
            ({**MAIL, "user": "a", "password": [HOOK]}, "password must be a text, found list"),
        ],
    )
    def test_what_is_refused(self, item, says):
        with pytest.raises(Problem) as caught:
            parse_notifications([item])
        assert says in caught.value.message
        assert caught.value.message.startswith("app_notifications[0]")
        assert HOOK not in caught.value.message

    def test_two_of_one_name(self):
        with pytest.raises(Problem, match="names 'a' twice"):
            parse_notifications([MAIL, HOOKED])
