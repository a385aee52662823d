# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checking sign-in: which cases run where, in which order, and what is told about them."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import BrowserError, Network
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_cases import CASES, Case, Check
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_mail import DatabaseSink, LogSink, SmtpSink
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_people import People
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_site import AUDIT_ACTIONS, PATHS, PROVIDERS, CaseFailed, Site
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import parse_mapping

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NAMES = tuple(case.name for case in CASES)
#: Addresses of documentation (RFC 3849): a rate limit by address then counts each run for itself.
_CLIENT = "2001:db8::%x:%x"

_NEWEST_TOKEN = """
SELECT {magic_link_tokens.token} FROM {magic_link_tokens} WHERE lower(btrim({magic_link_tokens.email})) = lower(%s)
ORDER BY {magic_link_tokens.createdAt} DESC LIMIT 1
"""


@dataclass(frozen=True)
class Settings:
    """What to check, and how to reach it.

    Attributes:
        url: where browsers find the application, base path included.
        connect_to: where to reach it instead, e.g. a candidate on a spare port.
        locale: the language in its paths.
        timeout: longest wait for one answer, in seconds.
        validate_certs, ca_file: how TLS certificates are checked.
        paths, providers, audit_actions: over the defaults.
        session_cookie, token_parameter: names in the application.
        google, google_client_id: how far signing in through Google goes.
        mail: ``source`` (smtp, log or database), ``host`` and ``port``, ``path``, ``timeout``.
        previous_url, previous_connect_to, previous_providers: the release before, for its sessions.
        email_domain, bcrypt_cost: of the test accounts.
        switched_off: case -> why.
        read_only: whether nothing must be written; then there are no test accounts.
        schema, mapping: names in the database.
    """

    url: str
    connect_to: str = ""
    locale: str = "de"
    timeout: float = 20
    validate_certs: bool = True
    ca_file: str = ""
    paths: dict[str, str] = field(default_factory=dict)
    providers: dict[str, str] = field(default_factory=dict)
    audit_actions: dict[str, str] = field(default_factory=dict)
    session_cookie: str = "authjs.session-token"
    token_parameter: str = "token"
    google: str = "test_issuer"
    google_client_id: str = ""
    mail: dict[str, Any] = field(default_factory=dict)
    previous_url: str = ""
    previous_connect_to: str = ""
    previous_providers: dict[str, str] = field(default_factory=dict)
    email_domain: str = "auth-check.invalid"
    bcrypt_cost: int | None = None
    switched_off: dict[str, str] = field(default_factory=dict)
    read_only: bool = False
    schema: str = "public"
    mapping: dict | None = None

    def require(self) -> None:
        """Raise for settings that contradict themselves or name what there is not.

        Raises:
            UnifiedUserError: says which.
        """
        known = {"switched_off": NAMES, "paths": PATHS, "providers": PROVIDERS, "previous_providers": PROVIDERS, "audit_actions": AUDIT_ACTIONS}
        for option, names in known.items():
            strange = sorted(set(getattr(self, option)) - set(names))
            if strange:
                raise _wrong("%s names %s, which is not known" % (option, ", ".join(strange)), "Known are %s" % ", ".join(names))
        silent = sorted(name for name, reason in self.switched_off.items() if not str(reason or "").strip())
        if silent:
            raise _wrong("%s is switched off without a reason" % ", ".join(silent), "Say why; the report shows it")
        if not self.url.startswith(("http://", "https://")):
            raise _wrong("url is no address of a site", "Set auth_check_url to where browsers find the application, with https:// and its base path")
        if self.mail.get("source", "smtp") == "log" and not self.mail.get("path"):
            raise _wrong("mail has no path", "Name the file that the application logs to")

    def site(self, headers: tuple = ()) -> Site:
        """Return the application."""
        return self._site(self.url, self.connect_to, self.providers, headers)

    def previous(self, headers: tuple = ()) -> Site | None:
        """Return the release before, where there is one to sign in at."""
        return self._site(self.previous_url, self.previous_connect_to, self.previous_providers, headers) if self.previous_url else None

    def _site(self, url: str, connect_to: str, providers: dict[str, str], headers: tuple) -> Site:
        url = url.rstrip("/")
        origin = "/".join(url.split("/")[:3])
        network = Network(origin, connect_to.rstrip("/"), self.timeout, self.validate_certs, self.ca_file, headers)
        return Site(url, network, self.locale, self.paths, providers, self.session_cookie, self.token_parameter)


def _wrong(cause: str, next_step: str) -> UnifiedUserError:
    return UnifiedUserError("check sign-in", cause, next_step)


@dataclass
class Result:
    """What became of one case.

    Attributes:
        name, kind, title: the case's.
        result: ``passed``, ``failed`` or ``skipped``.
        detail: what happened instead, a remark, or why it was skipped.
        duration_ms: in milliseconds.
    """

    name: str
    kind: str
    title: str
    result: str
    detail: str = ""
    duration_ms: int = 0


@dataclass
class Report:
    """What became of all cases, and of the test accounts."""

    cases: list[Result] = field(default_factory=list)
    removed_rows: int = 0
    leftover_runs: int = 0

    @property
    def failed(self) -> list[Result]:
        """The cases that did not go as they should."""
        return [case for case in self.cases if case.result == FAILED]

    def as_dict(self) -> dict[str, Any]:
        """Return what a module returns."""
        counts = {result: sum(case.result == result for case in self.cases) for result in (PASSED, FAILED, SKIPPED)}
        # Nothing tried is nothing proven.
        passed = not self.failed and counts[PASSED] > 0
        return {
            "passed": passed, "cases": [vars(case) for case in self.cases], "counts": counts,
            "failed_cases": [case.name for case in self.failed], "removed_rows": self.removed_rows, "leftover_runs": self.leftover_runs,
        }  # fmt: skip

    def require(self, **details: Any) -> None:
        """Raise unless all went as they should.

        Raises:
            UnifiedUserError: names the cases and what happened instead.
        """
        found = self.as_dict()
        if found["passed"]:
            return
        told = "; ".join("%s (%s)" % (case.name, case.detail) for case in self.failed) or "no case was tried"
        raise UnifiedUserError(
            "check sign-in", told,
            "Put the application right, or switch a case off that does not apply, with a reason, in auth_check_switched_off", **found, **details
        )  # fmt: skip


class Interrupted(BaseException):
    """Whoever started the check has ended it."""


_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def heed_signals() -> None:
    """Let a signal that ends this process end the check first, so that the test accounts go."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    _ignore_signals()
    raise Interrupted


def _ignore_signals() -> None:
    """Let nothing end the clean-up that a signal, or the end of the cases, began."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)


def check_sign_in(settings: Settings, database: Database | None = None) -> Report:
    """Run the cases against a running application.

    Args:
        settings: what to check.
        database: an open session on the application's database; None only where ``settings.read_only``.

    Raises:
        UnifiedUserError: the settings, the database or this host do not allow the check, or its rows could not be removed.
    """
    settings.require()
    if settings.read_only:
        return Report([_run_case(case, Check(settings.site(), None), settings) for case in CASES])  # type: ignore[arg-type]
    people = People(database, read_schema(database, settings.schema, parse_mapping(settings.mapping)), settings.email_domain, settings.bcrypt_cost)
    people.require()
    report = Report(leftover_runs=people.remove_leftovers())
    number = int(people.mark[-8:], 16)
    headers = (("User-Agent", "unified-user-auth-check (%s)" % people.mark), ("X-Forwarded-For", _CLIENT % (number >> 16, number & 0xFFFF)))
    site = settings.site(headers)
    sink = _sink(settings, site, people)
    all_answered = False
    try:
        people.make()
        check = Check(
            site, people, sink, settings.google, settings.google_client_id, {**AUDIT_ACTIONS, **settings.audit_actions},
            settings.previous(headers), float(settings.mail.get("timeout") or 10),
        )  # fmt: skip
        report.cases = [_run_case(case, check, settings) for case in CASES]
        all_answered = not check.unanswered
    except Interrupted:
        raise UnifiedUserError(
            "check sign-in", "it was ended from outside", "Nothing is left of its test accounts: run the same command again"
        ) from None
    finally:
        _ignore_signals()
        sink.close()
        report.removed_rows = people.remove(still_written=not all_answered)
    return report


def _sink(settings: Settings, site: Site, people: People) -> Any:
    """Return where magic links arrive."""
    mail = settings.mail
    source = mail.get("source") or "smtp"
    if source == "smtp":
        return SmtpSink(mail.get("host") or "127.0.0.1", int(mail.get("port") or 1025), people.mark, settings.token_parameter)
    if source == "log":
        return LogSink(mail["path"], settings.token_parameter)
    return DatabaseSink(lambda email: people.value(_NEWEST_TOKEN, email), site.at("magic_link_verify"), settings.token_parameter)


def _run_case(case: Case, check: Check, settings: Settings) -> Result:
    result = Result(case.name, case.kind, case.title, SKIPPED)
    if case.name in settings.switched_off:
        result.detail = "switched off: %s" % settings.switched_off[case.name]
    elif settings.read_only and not case.reads_only:
        result.detail = "it writes, and only reading is allowed here"
    elif case.needs == "legacy" and not check.people.legacy_side:
        result.detail = "there are no legacy tables any more"
    else:
        started = time.monotonic()
        try:
            result.detail = case.run(check) or ""
            result.result = PASSED
        except (CaseFailed, BrowserError) as error:
            result.result, result.detail = FAILED, str(error)
            check.unanswered = check.unanswered or isinstance(error, BrowserError)
        except psycopg2.Error:
            raise
        except Exception as error:
            # Its message may hold what the application sent.
            result.result, result.detail = FAILED, "the application's answer could not be read (%s)" % type(error).__name__
        result.duration_ms = round((time.monotonic() - started) * 1000)
    return result
