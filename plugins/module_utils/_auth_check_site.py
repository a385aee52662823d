# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The application as its users see it: where its pages are, how one signs in, and who is signed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import Answer, Browser, Network, origin_of, query_of

#: Where things are, below the URL of the application. ``{locale}`` and ``{id}`` are filled in.
PATHS = {
    "health": "/api/health",
    "auth": "/api/auth",
    "bookings": "/{locale}/api/bookings",
    "booking": "/{locale}/api/bookings/{id}",
    "studios": "/{locale}/api/studios",
    "user_studios": "/{locale}/api/user/studios",
    "register_owner": "/{locale}/api/auth/register",
    "register_customer": "/{locale}/api/auth/customer/register",
    "magic_link_request": "/{locale}/api/auth/magic-link/request",
    "magic_link_verify": "/{locale}/api/auth/magic-link/verify",
    "dashboard": "/{locale}/dashboard",
    "studio_dashboard": "/{locale}/studio/dashboard",
}
#: What the ways in are called.
PROVIDERS = {"owner": "credentials", "customer": "credentials", "magic_link": "magic-link", "google": "google"}
#: What the application writes into its audit log.
AUDIT_ACTIONS = {
    "sign_in": "LOGIN_SUCCESS", "sign_in_failed": "LOGIN_FAILED", "magic_link": "MAGIC_LINK_REQUESTED",
    "booking": "BOOKING_CREATED", "studio": "STUDIO_CREATED",
}  # fmt: skip

#: How Auth.js says that a provider of credentials refused; anything else is an error of the application's.
REFUSED = "CredentialsSignin"
_NOT_THERE = (404, 405, 501)


class CaseFailed(Exception):
    """A case did not go as it should. The message says what happened instead, without people and secrets."""


@dataclass
class Attempt:
    """An attempt to sign in.

    Attributes:
        answer: what the last page said.
        url: where the application wants to lead.
        error: the code of the refusal, or empty.
        user: who is signed in now, or None.
    """

    answer: Answer
    url: str
    error: str
    user: dict[str, Any] | None


@dataclass
class Site:
    """An application.

    Attributes:
        url: where a browser finds it, base path included, without a slash at the end.
        network: how to reach it.
        locale: the language in its paths.
        paths, providers: over the defaults.
        session_cookie: the name of the session's cookie, without prefix.
        token_parameter: the parameter of a magic link that holds its token.
    """

    url: str
    network: Network
    locale: str = "de"
    paths: dict[str, str] = field(default_factory=dict)
    providers: dict[str, str] = field(default_factory=dict)
    session_cookie: str = "authjs.session-token"
    token_parameter: str = "token"

    def __post_init__(self) -> None:
        self.paths = {**PATHS, **self.paths}
        self.providers = {**PROVIDERS, **self.providers}

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return origin_of(self.url)

    @property
    def callback_cookie(self) -> str:
        """The name of the cookie that holds where to go after sign-in."""
        return self.session_cookie.rpartition(".")[0] + ".callback-url"

    def browser(self) -> Browser:
        """Return a browser that has never been there."""
        return Browser(self.network)

    def at(self, name: str, identity: str = "") -> str:
        """Return the URL of a page."""
        return self.url + self.paths[name].format(locale=self.locale, id=quote(identity, safe=""))

    def auth(self, action: str) -> str:
        """Return the URL of an action of Auth.js."""
        return "%s/%s" % (self.at("auth"), action)

    def there(self, answer: Answer) -> Answer:
        """Insist that there is an endpoint.

        Raises:
            CaseFailed: there is none; names the path.
        """
        if answer.status in _NOT_THERE:
            raise CaseFailed("there is no endpoint at %s (status %d)" % (answer.path, answer.status))
        return answer

    def csrf_token(self, browser: Browser) -> str:
        """Return the token that forms must carry.

        Raises:
            CaseFailed: the application gave none.
        """
        answer = self.there(browser.get(self.auth("csrf")))
        token = (answer.json() or {}).get("csrfToken") if isinstance(answer.json(), dict) else None
        if not token:
            raise CaseFailed("%s gave no csrfToken (status %d)" % (answer.path, answer.status))
        return token

    def post_auth(self, browser: Browser, action: str, fields: dict[str, str]) -> tuple[Answer, str]:
        """Send a form to Auth.js and return its answer and where it leads."""
        answer = self.there(browser.post_form(self.auth(action), fields, **{"X-Auth-Return-Redirect": "1"}))
        value = answer.json()
        return answer, (value.get("url") if isinstance(value, dict) else "") or answer.location or answer.headers.get("location", "")

    def sign_in(self, browser: Browser, provider: str, fields: dict[str, str], callback: str = "") -> Attempt:
        """Sign in by a provider of credentials, as the form of the sign-in page does.

        Args:
            browser: whose browser.
            provider: the provider's id.
            fields: what is typed in.
            callback: where to go afterwards; empty for a dashboard.
        """
        token = self.csrf_token(browser)
        target = callback or self.at("dashboard")
        answer, url = self.post_auth(browser, "callback/" + provider, {**fields, "csrfToken": token, "callbackUrl": target})
        return Attempt(answer, url, query_of(url).get("error", ""), self.user(browser))

    def by_password(self, browser: Browser, way: str, email: str, password: str, callback: str = "") -> Attempt:
        """Sign in by e-mail and password as ``owner`` or ``customer``."""
        return self.sign_in(browser, self.providers[way], {"email": email, "password": password}, callback)

    def user(self, browser: Browser) -> dict[str, Any] | None:
        """Return the user of the session, or None where nobody is signed in."""
        answer = self.there(browser.get(self.auth("session")))
        value = answer.json()
        if answer.status != 200 or not (value is None or isinstance(value, dict)):
            raise CaseFailed("%s answered with status %d instead of a session" % (answer.path, answer.status))
        return (value or {}).get("user")

    def within(self, url: str) -> bool:
        """Return whether a URL leads to a page of this application."""
        parts = urlsplit(url)
        return not (parts.scheme or parts.netloc or url.startswith(("//", "\\", "/\\"))) or origin_of(url) == self.origin
