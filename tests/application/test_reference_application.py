# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reference application itself: both worlds work, side by side on one database, and show people the same."""

from __future__ import annotations

import contextlib
import re

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import Browser, Network
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_site import Site
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions

from tests.app import application, reference_data
from tests.application.conftest import BASE_PATH
from tests.seeded_secrets import new_secret

pytestmark = pytest.mark.one_major

OWNER, CUSTOMER = reference_data.owner_email(1), 3
LEGACY = {"owner": "studio-credentials", "customer": "customer-credentials"}


def open_site(url: str, **providers: str) -> Site:
    """An application, as its users see it."""
    return Site(url, Network("/".join(url.split("/")[:3])), providers=providers)


def sign_in(site: Site, way: str, email: str, password: str) -> Browser:
    """A browser in which somebody has signed in."""
    browser = site.browser()
    attempt = site.by_password(browser, way, email, password)
    assert attempt.user and attempt.user["email"] == email, attempt.error
    return browser


def studio_page(site: Site, browser: Browser) -> tuple[list[str], list[str]]:
    """The studios and the bookings that an owner's dashboard shows."""
    page = browser.get(site.at("studio_dashboard"))
    assert page.status == 200
    return re.findall(r'data-studio="(\w+)"', page.body), re.findall(r'data-booking="(\w+)"', page.body)


@pytest.fixture(scope="module")
def worlds(make_site):
    """Both releases on one database with two-way sync: the place, the legacy application and the unified one."""
    place = make_site()
    with place.session() as database, contextlib.ExitStack() as stack:
        Sync(database, SyncOptions()).install("both")
        url, _log = stack.enter_context(place.beside("legacy-world", application.build("legacy", BASE_PATH)))
        yield place, open_site(url, **LEGACY), open_site(place.stand.url)


def test_an_owner_sees_the_same_in_both_worlds(worlds):
    _place, legacy, unified = worlds
    shown = []
    for site in (legacy, unified):
        browser = sign_in(site, "owner", OWNER, reference_data.OWNER_PASSWORD)
        listed = {studio["id"] for studio in browser.get(site.at("user_studios")).json()["studios"]}
        studios, bookings = studio_page(site, browser)
        assert set(studios) == listed and bookings
        shown.append((studios, sorted(bookings)))
    assert shown[0] == shown[1]


def test_a_customer_sees_his_bookings_in_both_worlds(worlds):
    place, legacy, unified = worlds
    with place.session() as database:
        email = reference_data.customer_email(database.connection, CUSTOMER)
        linked, own = (
            {row["id"] for row in database.rows(f'SELECT b.id FROM {bookings} AS b JOIN {people} AS p ON p.id = b."customerId" WHERE p.email = %s', (email,))}
            for bookings, people in (("bookings", "customers"), ("new_bookings", "users"))
        )
    assert linked and linked <= own
    for site, expected in ((legacy, linked), (unified, own)):
        browser = sign_in(site, "customer", email, reference_data.CUSTOMER_PASSWORD)
        assert {booking["id"] for booking in browser.get(site.at("bookings")).json()["bookings"]} == expected
        page = browser.get(site.at("dashboard"))
        assert page.status == 200 and set(re.findall(r'data-booking="(\w+)"', page.body)) == expected
        assert browser.get(site.at("user_studios")).status == 403
        exported = browser.get(site.url + "/de/api/user/export").json()
        assert exported["person"]["email"] == email and {booking["id"] for booking in exported["bookings"]} == expected


@pytest.mark.parametrize("world", ["legacy", "unified"])
def test_registering_booking_and_leaving(worlds, world):
    place, legacy, unified = worlds
    site, other = (legacy, unified) if world == "legacy" else (unified, legacy)
    email, password = f"neu.{world}@mail.example", new_secret("registered")
    person = {"name": "Neu", "email": email, "password": password, "phone": "0"}
    assert site.browser().post_json(site.at("register_customer"), {**person, "password": "short"}).status == 400
    assert site.browser().post_json(site.at("register_customer"), person).status == 201
    assert site.browser().post_json(site.at("register_customer"), person).status == 409
    browser = sign_in(site, "customer", email, password)
    studio = browser.get(site.at("studios")).json()["studios"][0]["id"]
    booking = {"studioId": studio, "customerName": "Neu", "customerEmail": email, "customerPhone": "0", "preferredDate": "2091-01-02", "preferredTime": "9"}
    assert browser.post_json(site.at("bookings"), {**booking, "studioId": "none"}).status == 404
    made = browser.post_json(site.at("bookings"), booking).json()["booking"]["id"]
    # What was written in one world is there in the other, for the same person and nobody else.
    there = sign_in(other, "customer", email, password)
    assert [entry["id"] for entry in there.get(other.at("bookings")).json()["bookings"]] == [made]
    for each in (legacy, unified):
        with place.session() as database:
            stranger = reference_data.customer_email(database.connection, CUSTOMER)
        assert sign_in(each, "customer", stranger, reference_data.CUSTOMER_PASSWORD).get(each.at("booking", made)).status == 404
        assert each.browser().get(each.at("booking", made)).status == 401
    assert browser.post_json(site.url + "/de/api/user/delete", {"email": "somebody.else@mail.example"}).status == 400
    assert browser.post_json(site.url + "/de/api/user/delete", {"email": email.upper()}).status == 200
    assert site.user(browser) is None
    with place.session() as database:
        assert database.value("SELECT count(*) FROM customers WHERE email = %s", (email,)) == 0
        kept = database.rows('SELECT u.password FROM new_bookings AS b JOIN users AS u ON u.id = b."customerId" WHERE b.id = %s', (made,))
    # The legacy world keeps the booking, as a guest's; in the unified one it goes with its user.
    assert kept == ([{"password": None}] if world == "legacy" else [])


def test_sessions_travel_both_ways(worlds):
    """Going back must not sign people out, either."""
    _place, legacy, unified = worlds
    for here, there in ((legacy, unified), (unified, legacy)):
        browser = sign_in(here, "owner", OWNER, reference_data.OWNER_PASSWORD)
        traveller = there.browser()
        traveller.set_cookie(there.url, there.session_cookie, browser.cookie(here.url, here.session_cookie))
        assert there.user(traveller)["email"] == OWNER and traveller.get(there.at("user_studios")).status == 200


def test_a_joined_strangers_session_does_not_become_the_owners(worlds):
    """Customer 2 wrote owner 2's address and never verified it: his session of before must not open the owner's account."""
    place, legacy, unified = worlds
    with place.session() as database:
        email = reference_data.customer_email(database.connection, 2)
    browser = sign_in(legacy, "customer", email, reference_data.CUSTOMER_PASSWORD)
    traveller = unified.browser()
    traveller.set_cookie(unified.url, unified.session_cookie, browser.cookie(legacy.url, legacy.session_cookie))
    assert unified.user(traveller) is None
    attempt = unified.by_password(unified.browser(), "customer", email, reference_data.CUSTOMER_PASSWORD)
    assert attempt.user is None


def test_pages_lie_below_the_base_path(worlds):
    _place, legacy, unified = worlds
    for site in (legacy, unified):
        page = site.browser().get(site.url + "/de/auth/signin")
        scripts = re.findall(r'src="([^"]+\.js)"', page.body)
        assert page.status == 200 and scripts and all(script.startswith(BASE_PATH + "/") for script in scripts)
        assert site.browser().get(site.origin + scripts[0]).status == 200
        assert site.browser().get(site.origin + "/api/health").status == 404


def test_the_edits_of_the_guide_expect_what_they_find(tmp_path, monkeypatch):
    application.make_source(tmp_path / "auth", "auth")
    assert application.IMPORT_AFTER in (tmp_path / "auth" / application.IMPORTS[0]).read_text()
    monkeypatch.setattr(application, "IMPORTS", ("lib/mail.ts",))
    with pytest.raises(application.ApplicationError, match=r"lib/mail.ts: it has 0 imports"):
        application.make_source(tmp_path / "other", "unified")
