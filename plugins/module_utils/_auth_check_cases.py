# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The cases of an auth check: what must work, and what must be refused.

A case is a function that returns normally, with a short remark or None, or raises ``CaseFailed``. What a case relies on, it does
itself or proves first: a refusal counts only where the same attempt, done right, would have been let in.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, Callable
from urllib.parse import unquote, urlsplit

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import Answer, Browser, origin_of, query_of, with_query
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_mail import same_path, wait_for_link
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_password import new_password
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_people import People, Person
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_site import REFUSED, Attempt, CaseFailed, Site

WORKS = "must work"
REFUSES = "must be refused"

#: Where nobody must be led; the name belongs to nobody (RFC 2606).
_ELSEWHERE = "elsewhere.invalid"
_MOST_FORMS = 8
#: The guide's "OAuth fails", with its cure.
_ADAPTER_MISMATCH = (
    "oauth_adapter_mismatch: %s, so the adapter of the release's sign-in is one of other tables. Give NextAuth an adapter over users, new_accounts"
    " and new_sessions, and build the release again"
)
#: An answer for nobody may take a third to three times as long as one for a wrong password; without hashing it takes a tenth.
_ALIKE = (1 / 3, 3.0)
_ROUNDS, _BATCHES = 2, 6
#: Hashing that is faster than this cannot be told from chance, in seconds.
_MEASURABLE = 0.02


@dataclass
class Check:
    """What the cases of one run share.

    Attributes:
        site: the application.
        people: the test accounts; None where only reading is allowed.
        sink: where magic links arrive.
        google: ``test_issuer`` to sign in there, ``redirect`` to look only at where Google would be asked.
        google_client_id: the client id that the redirect must name; empty for any.
        audit_actions: what the audit log calls things.
        previous: the release before, for sessions made there; None for a stored session.
        mail_seconds: how long to wait for a mail, in seconds.
        unanswered: whether a request got no answer, so that the application may still be at it.
    """

    site: Site
    people: People
    sink: Any = None
    google: str = "test_issuer"
    google_client_id: str = ""
    audit_actions: dict[str, str] = field(default_factory=dict)
    previous: Site | None = None
    mail_seconds: float = 10
    unanswered: bool = False
    _browsers: dict[str, Browser] = field(default_factory=dict)

    def signed_in(self, name: str, way: str) -> Browser:
        """Return the browser of a test account that is signed in, the same one for every case.

        Raises:
            CaseFailed: he could not sign in.
        """
        if name not in self._browsers:
            browser = self.site.browser()
            let_in(self.site.by_password(browser, way, self.people[name].email, self.people[name].password), self.people[name])
            self._browsers[name] = browser
        return self._browsers[name]

    def link(self, name: str) -> str:
        """Ask for a magic link for a test account and return it as it arrives.

        Raises:
            CaseFailed: none arrived, or it leads elsewhere.
        """
        address = self.people[name].email
        since = self.sink.marker(address)
        answer = done(self.site.there(self.site.browser().post_json(self.site.at("magic_link_request"), {"email": address})))
        link = wait_for_link(self.sink, address, since, self.mail_seconds)
        if not link:
            raise CaseFailed(
                "no magic link arrived within %g s of %s: the application's mail service is not set, not reached, or not the one that is looked at"
                % (self.mail_seconds, answer.path)
            )
        if not self.site.within(link) or not same_path(link, self.site.at("magic_link_verify")):
            raise CaseFailed("the magic link leads to %s%s instead of %s" % (origin_of(link), urlsplit(link).path, self.site.at("magic_link_verify")))
        return link

    def user_of(self, email: str) -> list[str]:
        """Return the ids of all users of one identity key."""
        return self.people.values("SELECT {users.id} FROM {users} WHERE lower(btrim({users.email})) = lower(%s)", email)


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: what it is switched off and reported by.
        kind: ``must work`` or ``must be refused``.
        title: one sentence for people.
        run: does it; returns a remark or None.
        reads_only: whether it may run where nothing must be written.
        needs: ``legacy`` where it is about rows that exist only as long as the legacy tables.
    """

    name: str
    kind: str
    title: str
    run: Callable[[Check], Any]
    reads_only: bool = False
    needs: str = ""


CASES: list[Case] = []


def _case(kind: str, title: str, reads_only: bool = False, needs: str = "") -> Callable:
    def register(function: Callable) -> Callable:
        CASES.append(Case(function.__name__, kind, title, function, reads_only, needs))
        return function

    return register


# --- what cases are made of -------------------------------------------------------------------------------------------


def expect(condition: Any, message: str) -> None:
    """Raise CaseFailed with a message unless a condition holds."""
    if not condition:
        raise CaseFailed(message)


def done(answer: Answer) -> Answer:
    """Insist that the application did what it was asked."""
    expect(answer.status != 429, "%s: the application's rate limit is reached (status 429). Wait until it is over" % answer.path)
    expect(answer.status in (200, 201), "%s answered with status %d" % (answer.path, answer.status))
    return answer


def let_in(attempt: Attempt, person: Person) -> None:
    """Insist that an attempt signed a person in, and nobody else."""
    expect(attempt.user is not None, "the %s was not let in (%s)" % (person.name, attempt.error or "status %d" % attempt.answer.status))
    is_person(attempt.user, person)


def is_person(user: Any, person: Person) -> None:
    """Insist that a session is a person's. An application need not show the id; where it does, it must be the user's."""
    expect(str(user.get("email", "")).strip().lower() == person.email, "the session is another person's than the %s's" % person.name)
    expect(user.get("id", person.id) == person.id, "the session's user is not the %s's row of users: its adapter reads other tables" % person.name)


def kept_out(attempt: Attempt, what: str) -> None:
    """Insist that an attempt was refused, by a decision and not by an error."""
    expect(attempt.user is None, "%s signed in" % what)
    expect(attempt.answer.status < 500, "%s ended in an error of the application's (status %d)" % (what, attempt.answer.status))
    expect(attempt.error == REFUSED, "%s was answered with %s instead of %s" % (what, attempt.error or "no error", REFUSED))


def ids_in(value: Any) -> list[str]:
    """Return the ids of a list in an answer: of the value itself, or of the first list in it."""
    if isinstance(value, dict):
        value = next((part for part in value.values() if isinstance(part, list)), [])
    return [str(row.get("id")) for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def id_in(answer: Answer) -> str:
    """Return the id of what an answer says was made."""
    value = answer.json()
    if isinstance(value, dict) and "id" not in value:
        value = next((part for part in value.values() if isinstance(part, dict) and "id" in part), None)
    expect(isinstance(value, dict), "%s does not say what it made" % answer.path)
    return str(value["id"])


def book(check: Check, browser: Browser, email: str) -> Answer:
    """Book at the test studio."""
    return check.site.there(browser.post_json(check.site.at("bookings"), {
        "studioId": check.people.studio, "customerName": "auth check", "customerEmail": email, "customerPhone": "0",
        "preferredDate": "2091-07-14", "preferredTime": "09:00", "message": "auth check", "explicitHealthConsent": False,
    }))  # fmt: skip


def new_studio(check: Check, browser: Browser) -> Answer:
    """Make a studio; its address marks it."""
    return check.site.there(browser.post_json(check.site.at("studios"), {
        "name": "auth check", "description": "auth check", "address": "auth check", "city": "auth check", "postalCode": "00000",
        "phone": "0", "email": check.people.address("made-studio"),
    }))  # fmt: skip


# --- what must work ---------------------------------------------------------------------------------------------------


@_case(WORKS, "the application answers and reaches its database", reads_only=True)
def health(check: Check) -> None:
    answer = done(check.site.there(check.site.browser().get(check.site.at("health"))))
    value = answer.json()
    expect(not isinstance(value, dict) or value.get("database", True), "it does not reach its database")


def _google_redirect(check: Check, browser: Browser) -> str:
    """Start signing in through Google and return where the browser is sent, proven to be a proper request."""
    provider = check.site.providers["google"]
    token = check.site.csrf_token(browser)
    target = check.site.at("dashboard")
    answer, url = check.site.post_auth(browser, "signin/" + provider, {"csrfToken": token, "callbackUrl": target})
    expect(url and not check.site.within(url), "%s does not lead to Google (%s)" % (answer.path, query_of(url).get("error", "status %d" % answer.status)))
    asked = query_of(url)
    expect(asked.get("client_id"), "the request to Google has no client_id")
    expect(not check.google_client_id or asked["client_id"] == check.google_client_id, "the request to Google names another client_id than configured")
    expected = check.site.auth("callback/" + provider)
    expect(asked.get("redirect_uri") == expected, "Google would send people back to %s instead of %s" % (asked.get("redirect_uri"), expected))
    expect(asked.get("response_type") == "code", "the request to Google asks for no code")
    expect({"openid", "email"} <= set(asked.get("scope", "").split()), "the request to Google does not ask for openid and email")
    expect(asked.get("code_challenge") and asked.get("code_challenge_method") == "S256", "the request to Google has no PKCE challenge")
    expect(asked.get("state"), "the request to Google has no state")
    return url


@_case(WORKS, "the way to Google names this application, with state and PKCE", reads_only=True)
def google_redirect(check: Check) -> None:
    _google_redirect(check, check.site.browser())


@_case(WORKS, "an owner signs in through Google")
def google_owner(check: Check) -> str | None:
    browser, person = check.site.browser(), check.people["google"]
    url = _google_redirect(check, browser)
    if check.google == "redirect":
        return "only the redirect was looked at: there is no test issuer"
    answer = browser.follow(browser.get(url))
    for _unused in range(_MOST_FORMS):
        if check.site.within(answer.url):
            break
        forms = answer.forms()
        expect(forms, "the issuer's page %s has no form (status %d)" % (urlsplit(answer.url).path, answer.status))
        values = {name: "x" if kind == "password" else person.email for name, kind in forms[0].types.items() if kind in ("password", "text", "email")}
        answer = browser.follow(browser.submit(forms[0], values))
    expect(check.site.within(answer.url), "the issuer did not send the browser back")
    user = check.site.user(browser)
    error = query_of(answer.url).get("error")
    expect(user is not None or error != "OAuthAccountNotLinked", _ADAPTER_MISMATCH % "Google's account of the owner is a row of new_accounts and is not found")
    expect(user is not None, "the owner came back from Google without a session (%s)" % (error or "status %d" % answer.status))
    known = check.people.values("SELECT {users.id} FROM {users} WHERE {users.id} = %s", user["id"]) if "id" in user else check.user_of(user.get("email") or "")
    expect(known, _ADAPTER_MISMATCH % "the session's user is not a row of users")
    is_person(user, person)
    expect(check.user_of(person.email) == [person.id], "signing in through Google made another user")
    return None


@_case(WORKS, "an owner signs in by password")
def password_owner(check: Check) -> None:
    done(check.site.there(check.signed_in("owner", "owner").get(check.site.at("studio_dashboard"))))


@_case(WORKS, "a customer signs in by password")
def password_customer(check: Check) -> None:
    done(check.site.there(check.signed_in("customer", "customer").get(check.site.at("dashboard"))))


@_case(WORKS, "somebody who is both signs in and acts as an owner")
def password_joined_owner(check: Check) -> None:
    browser = check.signed_in("joined", "owner")
    done(check.site.there(browser.get(check.site.at("user_studios"))))
    done(check.site.there(browser.get(check.site.at("studio_dashboard"))))


@_case(WORKS, "somebody who is both signs in and acts as a customer")
def password_joined_customer(check: Check) -> None:
    browser = check.signed_in("joined", "customer")
    done(check.site.there(browser.get(check.site.at("bookings"))))
    done(check.site.there(browser.get(check.site.at("dashboard"))))


def _guest_bookings(check: Check, email: str) -> list[str]:
    return check.people.values(
        "SELECT {new_bookings.customerId} FROM {new_bookings} WHERE lower(btrim({new_bookings.customerEmail})) = lower(%s)", email
    )


@_case(WORKS, "a guest's booking makes exactly one user, without a password")
def guest_booking(check: Check) -> None:
    email = check.people.address("guest")
    done(book(check, check.site.browser(), email))
    users = check.user_of(email)
    expect(len(users) == 1, "there are %d users with the guest's e-mail instead of one" % len(users))
    expect(_guest_bookings(check, email) == users, "the booking is not the guest's")
    expect(check.people.value("SELECT {users.password} IS NULL FROM {users} WHERE {users.id} = %s", users[0]), "the guest's user has a password")


@_case(WORKS, "a guest's second booking makes no further user")
def guest_booking_again(check: Check) -> None:
    email = check.people.address("returning")
    for _unused in range(2):
        done(book(check, check.site.browser(), email))
    users, booked = check.user_of(email), _guest_bookings(check, email)
    expect(len(users) == 1, "there are %d users with the guest's e-mail instead of one" % len(users))
    expect(booked == users * 2, "the two bookings are not both the guest's")


@_case(WORKS, "a magic link is sent and signs in whom it was sent to")
def magic_link(check: Check) -> None:
    browser = check.site.browser()
    answer = browser.follow(browser.get(check.link("customer")))
    user = check.site.user(browser)
    expect(user is not None, "the link was followed to %s and signed nobody in" % urlsplit(answer.url).path)
    is_person(user, check.people["customer"])


@_case(WORKS, "an owner's new studio is his own")
def studio_creation(check: Check) -> None:
    browser = check.signed_in("owner", "owner")
    made = id_in(done(new_studio(check, browser)))
    owners = check.people.values("SELECT {studio_ownership.userId} FROM {studio_ownership} WHERE {studio_ownership.studioId} = %s", made)
    expect(owners == [check.people["owner"].id], "the new studio has %d owners in studio_ownership, not the one who made it" % len(owners))


def _registers(check: Check, way: str, role: str) -> None:
    email, password = check.people.address("registered-" + way), new_password()
    answer = check.site.there(
        check.site.browser().post_json(check.site.at("register_" + way), {"name": "auth check", "email": email, "password": password, "phone": "0"})
    )
    done(answer)
    users = check.user_of(email)
    expect(len(users) == 1, "there are %d users with the registered e-mail instead of one" % len(users))
    roles = check.people.values(
        "SELECT {user_role_assignments.role}::text FROM {user_role_assignments} WHERE {user_role_assignments.userId} = %s", users[0]
    )
    expect(roles == [role], "the new user has the roles %s instead of %s" % (", ".join(sorted(roles)) or "none", role))
    hashed = check.people.value("SELECT {users.password} FROM {users} WHERE {users.id} = %s", users[0]) or ""
    expect(hashed.startswith("$2") and len(hashed) == 60, "the new user's password is not stored as a bcrypt hash")


@_case(WORKS, "an owner registers")
def registration_owner(check: Check) -> None:
    _registers(check, "owner", _mapping.OWNER_ROLE)


@_case(WORKS, "a customer registers")
def registration_customer(check: Check) -> None:
    _registers(check, "customer", _mapping.CUSTOMER_ROLE)


@_case(WORKS, "a customer sees his own bookings and nobody else's")
def own_bookings(check: Check) -> None:
    browser, own, other = check.signed_in("customer", "customer"), check.people.bookings["customer"], check.people.bookings["stranger"]
    listed = ids_in(done(check.site.there(browser.get(check.site.at("bookings")))).json())
    expect(own in listed, "the customer's own booking is not among his bookings")
    theirs = check.people.values("SELECT {new_bookings.id} FROM {new_bookings} WHERE {new_bookings.customerId} = %s", check.people["customer"].id)
    strange = len(set(listed) - set(theirs))
    expect(not strange, "%d bookings of other people are among the customer's" % strange)
    page = done(check.site.there(browser.get(check.site.at("dashboard")))).body
    expect(other not in page and check.people["stranger"].email not in page, "another person's booking is on the customer's dashboard")


@_case(WORKS, "a customer may not do what an owner may")
def role_permissions(check: Check) -> None:
    page = check.site.at("user_studios")
    done(check.site.there(check.signed_in("owner", "owner").get(page)))
    customer = check.signed_in("customer", "customer")
    answer = customer.get(page)
    expect(answer.status == 403, "%s answers a customer with status %d instead of 403" % (answer.path, answer.status))
    made = new_studio(check, customer)
    expect(made.status == 403, "%s answers a customer with status %d instead of 403" % (made.path, made.status))


def _audited(check: Check, action: str, person: Person | None, resource: str = "") -> bool:
    return check.people.value(
        "SELECT EXISTS (SELECT FROM {audit_logs} WHERE {audit_logs.action} = %s AND (%s = '' OR {audit_logs.userId} = %s)"
        " AND (%s = '' OR {audit_logs.resourceId} = %s))",
        check.audit_actions[action], person.id if person else "", person.id if person else "", resource, resource,
    )  # fmt: skip


@_case(WORKS, "the audit log has who signed in, and who failed to")
def audit_sign_in(check: Check) -> None:
    person = check.people["auditor"]
    check.site.by_password(check.site.browser(), "customer", person.email, new_password())
    expect(_audited(check, "sign_in_failed", person), "a wrong password left no %s in audit_logs" % check.audit_actions["sign_in_failed"])
    check.signed_in("auditor", "customer")
    expect(_audited(check, "sign_in", person), "signing in left no %s in audit_logs" % check.audit_actions["sign_in"])


@_case(WORKS, "the audit log has who asked for a magic link")
def audit_magic_link(check: Check) -> None:
    person = check.people["auditor"]
    done(check.site.there(check.site.browser().post_json(check.site.at("magic_link_request"), {"email": person.email})))
    expect(_audited(check, "magic_link", person), "asking for a link left no %s in audit_logs" % check.audit_actions["magic_link"])


@_case(WORKS, "the audit log has bookings and studios")
def audit_writes(check: Check) -> None:
    person, browser = check.people["auditor"], check.signed_in("auditor", "owner")
    booking = id_in(done(book(check, browser, person.email)))
    expect(_audited(check, "booking", person, booking), "a booking left no %s in audit_logs" % check.audit_actions["booking"])
    studio = id_in(done(new_studio(check, browser)))
    expect(_audited(check, "studio", person, studio), "a new studio left no %s in audit_logs" % check.audit_actions["studio"])


@_case(WORKS, "a session from before the switch is still good")
def session_from_before(check: Check) -> None:
    browser, person = check.site.browser(), check.people["joined" if check.previous else "owner"]
    if check.previous:
        attempt = check.previous.by_password(browser, "owner", person.email, person.password)
        expect(attempt.user is not None, "nobody can sign in at the release before (%s), so its sessions could not be tried" % (attempt.error or "no session"))
        value = browser.cookie(check.previous.url, check.previous.session_cookie)
        expect(value, "the release before set no cookie %s" % check.previous.session_cookie)
        browser = check.site.browser()
    else:
        value = check.people.stored_session
    browser.set_cookie(check.site.url, check.site.session_cookie, value)
    user = check.site.user(browser)
    expect(user is not None, "the session was forgotten")
    is_person(user, person)


# --- what must be refused ---------------------------------------------------------------------------------------------


@_case(REFUSES, "nobody who is not signed in sees bookings, studios or a dashboard", reads_only=True)
def anonymous(check: Check) -> None:
    for name in ("bookings", "user_studios"):
        answer = check.site.there(check.site.browser().get(check.site.at(name)))
        expect(answer.status in (401, 403), "%s answers without a session with status %d instead of 401" % (answer.path, answer.status))
    for name in ("dashboard", "studio_dashboard"):
        answer = check.site.there(check.site.browser().get(check.site.at(name)))
        away = answer.location and urlsplit(answer.location).path != urlsplit(answer.url).path
        # A page that is streamed says so in its text: its status is sent before it knows.
        away = away or "NEXT_REDIRECT" in answer.body
        expect(away or answer.status in (401, 403), "%s is shown without a session (status %d)" % (answer.path, answer.status))


@_case(REFUSES, "a wrong password")
def wrong_password(check: Check) -> None:
    for name, way in (("owner", "owner"), ("customer", "customer")):
        kept_out(check.site.by_password(check.site.browser(), way, check.people[name].email, new_password()), "a wrong password of the %s" % name)


@_case(REFUSES, "an unknown person, with the same answer in about the same time as a wrong password")
def unknown_user(check: Check) -> str | None:
    known, unknown = check.people["auditor"].email, check.people.address("nobody")
    taken: dict[str, list[float]] = {known: [], unknown: []}
    answers: dict[str, Any] = {}
    low, high = _ALIKE
    for _unused in range(_BATCHES):
        # Interleaved, in either order, and the fastest of each: what slows a machine down then slows both.
        for email in (known, unknown, unknown, known) * _ROUNDS:
            attempt = check.site.by_password(check.site.browser(), "customer", email, new_password())
            kept_out(attempt, "an unknown person" if email == unknown else "a wrong password")
            taken[email].append(attempt.answer.seconds)
            answers[email] = (attempt.answer.status, sorted(query_of(attempt.url).items()), urlsplit(attempt.url).path)
        expect(answers[known] == answers[unknown], "an unknown person gets another answer than a wrong password")
        wrong, nobody = min(taken[known]), min(taken[unknown])
        if wrong < _MEASURABLE:
            return "a wrong password is answered in %.0f ms, too fast for times to tell anything" % (wrong * 1000)
        if low * wrong <= nobody <= high * wrong:
            return None
    raise CaseFailed(
        "an unknown person is answered in %.0f ms, a wrong password in %.0f ms: that tells who has an account" % (nobody * 1000, wrong * 1000)
    )


@_case(REFUSES, "somebody who is suspended, with the right password")
def suspended_user(check: Check) -> None:
    person = check.people["suspended"]
    kept_out(check.site.by_password(check.site.browser(), "customer", person.email, person.password), "a suspended person")


def _try_token(check: Check, fields: dict[str, str], what: str, victim: str = "") -> None:
    """Try a token at the provider itself, where no page stands in between."""
    attempt = check.site.sign_in(check.site.browser(), check.site.providers["magic_link"], fields)
    if victim and attempt.user is not None and str(attempt.user.get("email", "")).lower() != victim:
        # He has the session of whom the link was sent to, and that is who has the link.
        return
    kept_out(attempt, what + ", given to the provider,")


def _try_link(check: Check, link: str, what: str, victim: str = "") -> None:
    """Follow a link, as a person would."""
    browser = check.site.browser()
    answer = browser.follow(browser.get(link))
    expect(answer.status < 500, "%s, followed, ended in an error of the application's (status %d)" % (what, answer.status))
    user = check.site.user(browser)
    expect(user is None or (victim and str(user.get("email", "")).lower() != victim), "%s, followed, signed in" % what)


@_case(REFUSES, "the magic-link provider without a token")
def magic_link_without_token(check: Check) -> None:
    email = check.people["owner"].email
    for fields in ({"email": email}, {"email": email, "token": ""}, {"email": email, "token": "undefined"}, {"email": email, "token": "null"}):
        _try_token(check, fields, "an e-mail without a token")


@_case(REFUSES, "a magic link that was used")
def magic_link_used(check: Check) -> None:
    person = check.people["owner"]
    link, browser = check.link("owner"), check.site.browser()
    browser.follow(browser.get(link))
    expect(check.site.user(browser) is not None, "the link did not even work once")
    _try_link(check, link, "a used link")
    _try_token(check, {"email": person.email, "token": query_of(link)[check.site.token_parameter]}, "a used link's token")


@_case(REFUSES, "a magic link that is too old")
def magic_link_expired(check: Check) -> None:
    person = check.people["stranger"]
    link = check.link("stranger")
    aged = check.people.change(
        "UPDATE {magic_link_tokens} SET {magic_link_tokens.expiresAt} = (clock_timestamp() AT TIME ZONE 'UTC') - interval '1 minute'"
        " WHERE lower(btrim({magic_link_tokens.email})) = %s",
        person.email,
    )
    expect(aged, "the link's token is not in magic_link_tokens, so it could not be made old")
    _try_link(check, link, "a link that is too old")
    _try_token(check, {"email": person.email, "token": query_of(link)[check.site.token_parameter]}, "the token of a link that is too old")


@_case(REFUSES, "one person's magic link for another person")
def magic_link_foreign(check: Check) -> None:
    victim = check.people["owner"].email
    link = check.link("auditor")
    token = query_of(link)[check.site.token_parameter]
    _try_token(check, {"email": victim, "token": token}, "another person's token", victim)
    _try_link(check, with_query(check.link("joined"), email=victim), "another person's link", victim)


@_case(REFUSES, "magic links with tokens that are none")
def magic_link_malformed(check: Check) -> None:
    email = check.people["owner"].email
    for token in ("x", "0" * 64, "' OR ''='", secrets.token_hex(2000)):
        fields = {"email": email, check.site.token_parameter: token}
        _try_token(check, fields, "a malformed token")
        _try_link(check, with_query(check.site.at("magic_link_verify"), **fields), "a malformed link")


@_case(REFUSES, "the unverified password of a row that was absorbed", needs="legacy")
def absorbed_password(check: Check) -> None:
    person = check.people["joined"]
    # The same person with his own password is let in, so the refusal is the password's.
    check.signed_in("joined", "owner")
    for way in ("customer", "owner"):
        attempt = check.site.by_password(check.site.browser(), way, person.email, check.people.absorbed_password)
        kept_out(attempt, "the password of an absorbed, unverified row")


@_case(REFUSES, "a form without its CSRF token", reads_only=True)
def csrf_missing(check: Check) -> None:
    # Whom it would let in does not matter: without the token the form must not even be looked at.
    site, person = check.site, check.people["owner"] if check.people else None
    fields = {"email": person.email if person else "nobody@" + _ELSEWHERE, "password": person.password if person else new_password()}
    for token in ({}, {"csrfToken": "0" * 64}):
        browser = site.browser()
        answer, url = site.post_auth(browser, "callback/" + site.providers["owner"], {**fields, **token, "callbackUrl": site.at("dashboard")})
        expect(site.user(browser) is None, "a form %s signed in" % ("with a made-up CSRF token" if token else "without a CSRF token"))
        told = query_of(url).get("csrf") == "true" or query_of(url).get("error") == "MissingCSRF" or answer.status in (400, 403)
        expect(told, "%s looked at a form without its CSRF token (%s)" % (answer.path, query_of(url).get("error", "status %d" % answer.status)))


@_case(REFUSES, "to be led elsewhere after sign-in", reads_only=True)
def open_redirect(check: Check) -> None:
    site = check.site
    parts = urlsplit(site.url)
    places = ("https://%s/" % _ELSEWHERE, "//%s/" % _ELSEWHERE, "%s.%s/" % (site.origin, _ELSEWHERE),
              "%s://%s@%s/" % (parts.scheme, parts.netloc, _ELSEWHERE), "/\\%s/" % _ELSEWHERE)  # fmt: skip
    for place in places:
        browser = site.browser()
        token = site.csrf_token(browser)
        # The place is kept in a cookie while the person is at Google's.
        site.post_auth(browser, "signin/" + site.providers["google"], {"csrfToken": token, "callbackUrl": place})
        kept = unquote(browser.cookie(site.url, site.callback_cookie) or "")
        expect(kept, "there is no cookie %s, so where the browser would be led could not be seen" % site.callback_cookie)
        expect(site.within(kept), "after sign-in the browser would be led to another site")
        if check.people and place == places[0]:
            person = check.people["owner"]
            attempt = site.by_password(site.browser(), "owner", person.email, person.password, callback=place)
            expect(attempt.user is not None, "the owner was not let in (%s), so where he is led could not be seen" % (attempt.error or "no session"))
            expect(site.within(attempt.url), "after sign-in the browser is led to another site")


@_case(REFUSES, "another person's booking by its id")
def foreign_booking(check: Check) -> None:
    browser, bookings = check.signed_in("customer", "customer"), check.people.bookings
    own = browser.get(check.site.at("booking", bookings["customer"]))
    expect(own.status == 200, "%s gives a customer not even his own booking (status %d)" % (own.path, own.status))
    answer = browser.get(check.site.at("booking", bookings["stranger"]))
    expect(answer.status in (401, 403, 404), "%s gives a customer another person's booking (status %d)" % (answer.path, answer.status))


@_case(REFUSES, "a second account for an e-mail in other letter case")
def letter_case(check: Check) -> None:
    person = check.people["customer"]
    shouted = person.email.upper()

    def still_one(after: str) -> None:
        users = check.user_of(person.email)
        expect(users == [person.id], "there are %d users with one e-mail in different letter case after %s" % (len(users), after))

    attempt = check.site.by_password(check.site.browser(), "customer", shouted, person.password)
    if attempt.user is not None:
        is_person(attempt.user, person)
    for way in ("customer", "owner"):
        fields = {"name": "auth check", "email": shouted, "password": new_password(), "phone": "0"}
        check.site.there(check.site.browser().post_json(check.site.at("register_" + way), fields))
        still_one("a registration")
    answer = book(check, check.site.browser(), shouted)
    expect(answer.status != 429, "%s: the application's rate limit is reached (status 429). Wait until it is over" % answer.path)
    still_one("a guest's booking")
