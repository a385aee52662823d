# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The parts of the check of sign-in that need no application: its browser, its mail service, its passwords."""

from __future__ import annotations

import http.server
import smtplib
import threading
from email.message import EmailMessage

import bcrypt
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _auth_check_password
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import Browser, BrowserError, Network, with_query
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_mail import LogSink, SmtpSink, links_in, wait_for_link
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_site import Site
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

from tests.app.application import free_port

PAGES = {
    "/": (302, [("Location", "/in/here?x=1")], ""),
    "/in/here": (200, [("Set-Cookie", "a=1; Path=/in; HttpOnly"), ("Set-Cookie", "b=2; Secure"), ("Set-Cookie", "c=3")], "here"),
    "/in/out": (200, [("Set-Cookie", "a=; Path=/in; Max-Age=0"), ("Set-Cookie", "c=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT")], ""),
    "/round": (307, [("Location", "round")], ""),
    "/form": (200, [], '<form method="POST" action="/echo?y=2"><input name="login" type="text"><input type="hidden" name="t" value="a&amp;b">'
                       '<button name="go" value="1">Go</button><button name="go" value="2">No</button></form>'),
}  # fmt: skip


@pytest.fixture(scope="module")
def pages():
    """A site of a few pages, which repeats what it is sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            told = f"{self.headers['Host']} {self.headers.get('X-Forwarded-Proto')} {self.headers.get('Cookie')} {self.rfile.read(length).decode()}"
            status, headers, body = PAGES.get(path, (200, [], told))
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write((body or told).encode())

        do_POST = do_GET

        def log_message(self, *_arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_cookies_go_where_they_belong(pages):
    browser = Browser(Network(pages))
    answer = browser.follow(browser.get(pages + "/"))
    assert answer.url == pages + "/in/here?x=1" and answer.body == "here" and answer.path == "GET /in/here"
    # A secure cookie does not travel without encryption, and a path's cookie stays on its path.
    assert browser.get(pages + "/in/else").body.split()[2:] == ["a=1;", "c=3"]
    assert browser.get(pages + "/inn").body.split()[2:] == ["c=3"]
    browser.get(pages + "/in/out")
    assert browser.get(pages + "/in/else").body.split()[2:] == ["None"]


def test_the_public_address_at_another_place(pages):
    browser = Browser(Network("https://www.massage.example", connect_to=pages))
    assert browser.get("https://www.massage.example/x").body.split()[:2] == ["www.massage.example", "https"]
    browser.set_cookie("https://www.massage.example/", "authjs.session-token", "t")
    assert "__Secure-authjs.session-token=t" in browser.get("https://www.massage.example/x").body
    assert browser.cookie("https://www.massage.example/", "authjs.session-token") == "t"


def test_forms(pages):
    browser = Browser(Network(pages))
    (form,) = browser.get(pages + "/form").forms()
    assert form.fields == {"login": "", "t": "a&b", "go": "1"} and form.types["login"] == "text" and form.action == pages + "/echo?y=2"
    assert browser.submit(form, {"login": "é"}).body.endswith("login=%C3%A9&t=a%26b&go=1")


def test_redirects_without_end_and_pages_that_are_none(pages):
    browser = Browser(Network(pages))
    with pytest.raises(BrowserError, match="redirects without end"):
        browser.follow(browser.get(pages + "/round"))
    with pytest.raises(BrowserError, match=r"GET /secret at localhost:1 gave no answer \(Connection refused\)"):
        browser.get("http://localhost:1/secret?token=not-shown")
    with pytest.raises(BrowserError, match="javascript leads to no page"):
        browser.get("javascript:alert(1)")


@pytest.mark.parametrize(
    ("url", "within"),
    [
        ("https://www.massage.example/termine/de", True), ("/de/dashboard", True), ("https://elsewhere.invalid/", False),
        ("//elsewhere.invalid/", False), ("https://www.massage.example.elsewhere.invalid/", False),
        ("https://www.massage.example@elsewhere.invalid/", False), ("/\\elsewhere.invalid", False), ("javascript:alert(1)", False),
        ("http://www.massage.example/", False),
    ],
)  # fmt: skip
def test_what_leads_elsewhere(url, within):
    assert Site("https://www.massage.example/termine", Network("https://www.massage.example")).within(url) is within


def test_links_of_a_text():
    text = 'Hallo, <a href="https://a.example/v?token=t1&amp;email=x%40y">hier</a>, oder https://a.example/v?token=t2. https://a.example/impressum'
    assert links_in(text, "token") == ["https://a.example/v?token=t1&email=x%40y", "https://a.example/v?token=t2"]
    assert with_query("https://a.example/v?token=t1&email=a", email="b@c") == "https://a.example/v?token=t1&email=b%40c"


def test_the_mail_service_takes_mail_for_test_accounts_only():
    port, mark = free_port(), "auth-check-0123456789"
    sink = SmtpSink("127.0.0.1", port, mark, "token")
    try:
        with pytest.raises(UnifiedUserError, match=f"receive mail on 127.0.0.1 port {port}: .*auth_check_mail"):
            SmtpSink("127.0.0.1", port, mark, "token")
        mail = EmailMessage()
        mail["Subject"], mail["To"], mail["From"] = "Ihr Link", f"{mark}-owner@x.invalid", "app@x.invalid"
        # Long enough to be folded, and a line that begins with a full stop.
        mail.set_content("Grüße\n.\n" + "https://a.example/de/verify?token=" + "a" * 90 + "&email=b\n", cte="quoted-printable")
        since = sink.marker(mail["To"])
        with smtplib.SMTP("127.0.0.1", port, timeout=5) as client:
            client.send_message(mail)
            with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
                client.sendmail("app@x.invalid", ["somebody@real.example"], "x")
            assert refused.value.recipients["somebody@real.example"][0] == 450
        assert wait_for_link(sink, mail["To"].upper(), since, 5) == "https://a.example/de/verify?token=" + "a" * 90 + "&email=b"
        assert wait_for_link(sink, mail["To"], sink.marker(mail["To"]), 0.1) is None
        assert sink.link(f"{mark}-customer@x.invalid", 0) is None
    finally:
        sink.close()


def test_links_in_a_log(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(UnifiedUserError, match=r"No such file.*auth_check_mail"):
        LogSink(str(log), "token")
    log.write_text("to a@x: https://h/v?token=old&email=a%40x\n")
    sink = LogSink(str(log), "token")
    since = sink.marker("a@x")
    assert sink.link("a@x", since) is None
    with log.open("a") as file:
        file.write("to b@x: https://h/v?token=other&email=b%40x\nto A@x: https://h/v?token=new&email=A%40x\n")
    assert sink.link("a@x", since) == "https://h/v?token=new&email=A%40x"
    # Rotated meanwhile, and a link that does not say for whom it is.
    log.write_text("to a@x: https://h/v?token=n2\n")
    assert sink.link("a@x", since) == "https://h/v?token=n2" and sink.link("c@x", since) is None


def test_hashes_by_the_system_are_bcrypt(monkeypatch):
    password = _auth_check_password.new_password()
    by_library = _auth_check_password.bcrypt_hash(password, 5)
    monkeypatch.setattr(_auth_check_password, "_by_library", lambda password, cost: "")
    by_system = _auth_check_password.bcrypt_hash(password, 5)
    for hashed in (by_library, by_system):
        assert hashed.startswith("$2b$05$") and bcrypt.checkpw(password.encode(), hashed.encode())
    monkeypatch.setattr(_auth_check_password, "_LIBRARIES", ("libnothing.so",))
    with pytest.raises(UnifiedUserError, match="Install python3-bcrypt"):
        _auth_check_password.bcrypt_hash(password, 5)
