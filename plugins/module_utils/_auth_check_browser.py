# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A browser without a window: cookies, redirects and forms over HTTP, each step visible to whoever drives it.

What an application answers may hold people and tokens. Nothing of it gets into a message: errors name method, path and status.
"""

from __future__ import annotations

import html
import http.client
import json
import ssl
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urljoin, urlsplit

#: More redirects than any sign-in needs.
_MOST_REDIRECTS = 15
#: What a person would not wait for, in bytes.
_LARGEST_ANSWER = 8 * 1024 * 1024
_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"


class BrowserError(Exception):
    """A page could not be had. The message says which and why, without query and answer."""


@dataclass
class Form:
    """A form of a page.

    Attributes:
        action: where it is sent, absolute.
        method: ``get`` or ``post``.
        fields: what it holds, by name.
        types: the type of each field, by name.
    """

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)


class _FormReader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._url = url
        self._open = False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "form":
            action = urljoin(self._url, attributes.get("action", ""))
            self.forms.append(Form(action, attributes.get("method", "get").lower()))
            self._open = True
        elif self._open and tag in ("input", "button") and attributes.get("name"):
            name = attributes["name"]
            # Of several buttons the first is the one that Enter presses.
            if name not in self.forms[-1].fields:
                self.forms[-1].fields[name] = attributes.get("value", "")
                self.forms[-1].types[name] = attributes.get("type", "submit" if tag == "button" else "text").lower()

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = False


@dataclass
class Answer:
    """What came back.

    Attributes:
        method, url: what was asked for, the URL absolute.
        status: the HTTP status.
        headers: names in lower case; the last of several values.
        body: decoded text.
        seconds: how long it took, in seconds.
    """

    method: str
    url: str
    status: int
    headers: dict[str, str]
    body: str
    seconds: float

    @property
    def path(self) -> str:
        """Method and path, for messages."""
        return "%s %s" % (self.method, urlsplit(self.url).path)

    @property
    def location(self) -> str:
        """Where it redirects to, absolute, or empty."""
        if self.status not in (301, 302, 303, 307, 308) or not self.headers.get("location"):
            return ""
        return urljoin(self.url, self.headers["location"])

    def json(self) -> Any:
        """Return the body as JSON, or None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def forms(self) -> list[Form]:
        """Return the forms of the page."""
        reader = _FormReader(self.url)
        reader.feed(self.body)
        return reader.forms


@dataclass
class _Cookie:
    value: str
    path: str
    secure: bool


@dataclass(frozen=True)
class Network:
    """How to reach the application.

    Attributes:
        site: its public URL without a path, e.g. ``https://massava.example``.
        connect_to: ``http://127.0.0.1:3999`` to reach that site there instead, as a proxy would; empty to go the usual way.
        timeout: longest wait for one answer, in seconds.
        validate_certs: whether certificates are checked.
        ca_file: certificates of further authorities, or empty.
        headers: sent with every request to the site.
    """

    site: str
    connect_to: str = ""
    timeout: float = 20
    validate_certs: bool = True
    ca_file: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def context(self) -> ssl.SSLContext:
        """Return what TLS connections are made with."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if not self.validate_certs:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Browser:
    """One person's browser, with cookies of its own.

    Args:
        network: how to reach the application.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._cookies: dict[str, dict[str, _Cookie]] = {}

    def cookie(self, url: str, name: str) -> str | None:
        """Return a cookie of a URL's host, with or without the prefix that secure ones have."""
        jar = self._cookies.get(urlsplit(url).netloc, {})
        found = [jar[prefix + name].value for prefix in ("", "__Secure-", "__Host-") if prefix + name in jar]
        return found[0] if found else None

    def set_cookie(self, url: str, name: str, value: str) -> None:
        """Put a cookie where the application would have put it."""
        parts = urlsplit(url)
        prefix = "__Secure-" if parts.scheme == "https" else ""
        self._cookies.setdefault(parts.netloc, {})[prefix + name] = _Cookie(value, "/", bool(prefix))

    def get(self, url: str, **headers: str) -> Answer:
        """Ask for a page, without following redirects."""
        return self._request("GET", url, None, headers)

    def post_form(self, url: str, fields: dict[str, str], **headers: str) -> Answer:
        """Send a form, without following redirects."""
        return self._request("POST", url, urlencode(fields), {"Content-Type": _FORM, **headers})

    def post_json(self, url: str, value: Any) -> Answer:
        """Send JSON, without following redirects."""
        return self._request("POST", url, json.dumps(value), {"Content-Type": _JSON})

    def follow(self, answer: Answer) -> Answer:
        """Follow redirects to the page where they end.

        Raises:
            BrowserError: they do not end.
        """
        for _unused in range(_MOST_REDIRECTS):
            target = answer.location
            if not target:
                return answer
            answer = self.get(target)
        raise BrowserError("%s redirects without end" % answer.path)

    def submit(self, form: Form, values: dict[str, str]) -> Answer:
        """Send a form of a page with some of its fields filled in."""
        fields = {**form.fields, **values}
        if form.method == "post":
            return self.post_form(form.action, fields)
        return self.get("%s?%s" % (form.action.partition("?")[0], urlencode(fields)))

    def _request(self, method: str, url: str, body: str | None, headers: dict[str, str]) -> Answer:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BrowserError("%s leads to no page of the web" % (parts.scheme or "an empty address"))
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        sent = {"Host": parts.netloc, "Accept": "*/*", "Connection": "close"}
        if "%s://%s" % (parts.scheme, parts.netloc) == self._network.site:
            sent.update(self._network.headers)
            if self._network.connect_to:
                sent.update({"X-Forwarded-Proto": parts.scheme, "X-Forwarded-Host": parts.netloc})
        cookies = self._cookies_for(parts)
        if cookies:
            sent["Cookie"] = cookies
        sent.update(headers)
        connection = self._connect(parts)
        started = time.monotonic()
        try:
            connection.request(method, quote(target, safe="/?&=%:;,+@!$'()*~#[]"), None if body is None else body.encode(), sent)
            response = connection.getresponse()
            text = response.read(_LARGEST_ANSWER).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BrowserError("%s %s at %s gave no answer (%s)" % (method, parts.path, parts.netloc, _reason(error)))
        finally:
            connection.close()
        seconds = time.monotonic() - started
        self._remember(parts, response.msg.get_all("Set-Cookie") or [])
        return Answer(method, url, response.status, {name.lower(): value for name, value in response.getheaders()}, text, seconds)

    def _connect(self, parts) -> http.client.HTTPConnection:
        if self._network.connect_to and "%s://%s" % (parts.scheme, parts.netloc) == self._network.site:
            parts = urlsplit(self._network.connect_to)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self._network.timeout, context=self._network.context())
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self._network.timeout)

    def _cookies_for(self, parts) -> str:
        path = parts.path or "/"
        pairs = []
        for name, cookie in self._cookies.get(parts.netloc, {}).items():
            within = path == cookie.path or path.startswith(cookie.path.rstrip("/") + "/")
            if within and (parts.scheme == "https" or not cookie.secure):
                pairs.append("%s=%s" % (name, cookie.value))
        return "; ".join(pairs)

    def _remember(self, parts, headers: list[str]) -> None:
        # Each host and port has a jar of its own: stricter than a real browser, and nothing here needs less.
        jar = self._cookies.setdefault(parts.netloc, {})
        for header in headers:
            pair, *attributes = header.split(";")
            name, unused, value = pair.strip().partition("=")
            given = {key.strip().lower(): text.strip() for key, unused, text in (attribute.partition("=") for attribute in attributes)}
            if _expired(given) or not value:
                jar.pop(name, None)
            else:
                path = given.get("path") or "/"
                jar[name] = _Cookie(value, path if path.startswith("/") else "/", "secure" in given)


def _expired(attributes: dict[str, str]) -> bool:
    age = attributes.get("max-age", "")
    if age.lstrip("-").isdigit():
        return int(age) <= 0
    try:
        return parsedate_to_datetime(attributes["expires"]).timestamp() <= time.time()
    except (KeyError, TypeError, ValueError):
        return False


def _reason(error: Exception) -> str:
    """Say why there was no answer; never what was sent."""
    return getattr(error, "strerror", None) or type(error).__name__


def query_of(url: str) -> dict[str, str]:
    """Return the first value of each parameter of a URL."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query, keep_blank_values=True).items()}


def with_query(url: str, **changes: str) -> str:
    """Return a URL with some of its parameters set to other values."""
    parts = urlsplit(url)
    pairs = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in changes]
    return parts._replace(query=urlencode(pairs + list(changes.items()))).geturl()


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL, as a browser compares them."""
    parts = urlsplit(url)
    return "%s://%s" % (parts.scheme, parts.netloc)


def unescape(text: str) -> str:
    """Return text of an HTML page or mail as a person reads it."""
    return html.unescape(text)
