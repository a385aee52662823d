# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a magic link arrives: in a mail that this process receives itself, in the application's log, or in its database."""

from __future__ import annotations

import email
import email.policy
import os
import re
import socketserver
import threading
import time
from typing import Any, Callable
from urllib.parse import urlsplit

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import query_of, unescape
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

_LINK = re.compile(r"https?://[^\s\"'<>\\]+")
#: A mail of the application's is far smaller, in bytes.
_LARGEST_MAIL = 1024 * 1024
_PAUSE = 0.05


def links_in(text: str, token_parameter: str) -> list[str]:
    """Return the links of a text that carry a token, in order."""
    found = [link.rstrip(".,;)") for link in _LINK.findall(unescape(text))]
    return [link for link in found if query_of(link).get(token_parameter)]


class SmtpSink:
    """A mail service for as long as the check runs. It takes mail for the test accounts only.

    Whoever else is written to meanwhile is not lost: his mail is refused for now, and mail services try again.

    Args:
        host, port: where to listen, as the application's settings name it.
        mark: what every address of the test accounts holds.
        token_parameter: the parameter of a link that holds its token.
    """

    def __init__(self, host: str, port: int, mark: str, token_parameter: str) -> None:
        self._mails: list[tuple[list[str], str]] = []
        self._token_parameter = token_parameter
        mails = self._mails

        class Session(socketserver.StreamRequestHandler):
            timeout = 20

            def handle(self) -> None:
                _converse(self.rfile, self.wfile, mark, mails)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        try:
            self._server = Server((host, port), Session)
        except OSError as error:
            raise UnifiedUserError(
                "receive mail on %s port %s" % (host, port), error.strerror or "it cannot be listened on",
                "Let auth_check_mail name the address that the application sends its mail to, and see that nothing else listens there",
            ) from error  # fmt: skip
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": _PAUSE}, daemon=True).start()

    def marker(self, address: str) -> int:
        """Return a point in time for ``link``."""
        return len(self._mails)

    def link(self, address: str, since: int) -> str | None:
        """Return the newest link that was sent to an address since a point in time."""
        for recipients, text in reversed(self._mails[since:]):
            if address.lower() in recipients:
                found = links_in(text, self._token_parameter)
                if found:
                    return found[-1]
        return None

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _converse(lines, out, mark: str, mails: list) -> None:
    """Hold one conversation of SMTP (RFC 5321), as far as sending a mail needs it."""

    def say(text: str) -> None:
        out.write(text.encode() + b"\r\n")

    recipients: list[str] = []
    say("220 ready")
    while True:
        line = lines.readline(4096)
        if not line:
            return
        verb = line.decode("utf-8", "replace").strip()
        command = verb[:4].upper()
        if command == "RCPT":
            address = verb.partition("<")[2].partition(">")[0].lower()
            if mark in address:
                recipients.append(address)
                say("250 ok")
            else:
                say("450 4.7.1 not now, a check is running; try again later")
        elif command == "DATA" and recipients:
            say("354 go on")
            mails.append((recipients, _read_mail(lines)))
            recipients = []
            say("250 ok")
        elif command == "QUIT":
            say("221 bye")
            return
        elif command in ("HELO", "EHLO", "MAIL", "RSET", "NOOP"):
            recipients = [] if command in ("MAIL", "RSET") else recipients
            say("250 ok")
        else:
            say("503 not now" if command == "DATA" else "502 not known")


def _read_mail(lines) -> str:
    content = bytearray()
    while len(content) < _LARGEST_MAIL:
        line = lines.readline(65536)
        if not line or line in (b".\r\n", b".\n"):
            break
        content += line[1:] if line.startswith(b"..") else line
    mail = email.message_from_bytes(bytes(content), policy=email.policy.default)
    parts = [part for part in mail.walk() if part.get_content_maintype() == "text"]
    return "\n".join((part.get_payload(decode=True) or b"").decode("utf-8", "replace") for part in parts)


class LogSink:
    """The application's log, where development mode writes the link.

    Args:
        path: the file, on the host that runs the module.
        token_parameter: the parameter of a link that holds its token.
    """

    def __init__(self, path: str, token_parameter: str) -> None:
        self._path = path
        self._token_parameter = token_parameter
        self._size()

    def _size(self) -> int:
        try:
            return os.stat(self._path).st_size
        except OSError as error:
            raise UnifiedUserError(
                "read the log %s" % self._path, error.strerror or "it is not there", "Let auth_check_mail name the file that the application logs to"
            ) from error

    def marker(self, address: str) -> int:
        """Return a point in time for ``link``."""
        return self._size()

    def link(self, address: str, since: int) -> str | None:
        """Return the newest link that was logged for an address since a point in time."""
        with open(self._path, "rb") as file:
            # A log that was rotated meanwhile begins anew.
            file.seek(since if self._size() >= since else 0)
            text = file.read().decode("utf-8", "replace")
        start = text.lower().rfind(address.lower())
        for link in reversed(links_in(text, self._token_parameter)):
            named = query_of(link).get("email")
            if named.lower() == address.lower() if named else start >= 0 and text.find(link) > start:
                return link
        return None

    def close(self) -> None:
        """Nothing is open."""


class DatabaseSink:
    """The table of tokens, where no mail leaves the host.

    Args:
        newest: returns the newest token of an address, or None.
        verify_url: the URL that a link leads to.
        token_parameter: the parameter of a link that holds its token.
    """

    def __init__(self, newest: Callable[[str], Any], verify_url: str, token_parameter: str) -> None:
        self._newest = newest
        self._verify_url = verify_url
        self._token_parameter = token_parameter

    def marker(self, address: str) -> Any:
        """Return a point in time for ``link``: the token that is there already."""
        return self._newest(address)

    def link(self, address: str, since: Any) -> str | None:
        """Return the link that the application would have sent, of a token that is new since a point in time."""
        token = self._newest(address)
        if not token or token == since:
            return None
        from urllib.parse import urlencode

        return "%s?%s" % (self._verify_url, urlencode({self._token_parameter: token, "email": address}))

    def close(self) -> None:
        """Nothing is open."""


def wait_for_link(sink: Any, address: str, since: Any, seconds: float) -> str | None:
    """Wait until a link for an address has arrived, for at most some seconds.

    Returns:
        The link, or None.
    """
    deadline = time.monotonic() + seconds
    while True:
        link = sink.link(address, since)
        if link or time.monotonic() > deadline:
            return link
        time.sleep(_PAUSE)


def same_path(link: str, url: str) -> bool:
    """Return whether a link leads to a page, whatever its parameters are."""
    return urlsplit(link).path == urlsplit(url).path
